"""Bodies that clients should not send: valid ones with something in them replaced, doubled, cut off or broken."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from hypothesis import strategies as st


class Raw(NamedTuple):
    """Bytes that stand in the body as they are, JSON or not."""

    written: bytes


class Doubled(NamedTuple):
    """An object with one of its names twice."""

    members: list[tuple[str, Any]]


DEEP = 3000
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 0.5, 4.0, -0.0, 1e308, 5e-324),
    *(2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30),
    *(
        "",
        " ",
        "\n",
        "\x00",
        "a\x00b",
        "\ud800",
        "\udfff\ud800",
        "\u202e\u2028",
        "🎉" * 30,
        "null",
        "{}",
        "[]",
    ),
    *("x" * 3000, "../../etc/passwd", "{{ 7 * 7 }}", "<|im_end|>", "text", "user", "tool", "json_object"),
    *([], [[]], [None], [[[]], {}], ["", 1, None, {}], [1.5], ["a"] * 400, [-1], [5] * 300, [[5], [6]]),
    *({}, {"": {}}, {"type": None}, {"type": "text"}, {"type": "function"}, {"type": "object", "": 1}),
    *({"__class__": "os"}, {"5": "x"}, {"-1": 1}, {str(2**40): 1}, {"\ud800": "\ud800"}, {"name": "f"}),
    *({"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}}, {"role": "assistant"}, {"role": "tool"}),
    *({"type": "string"}, {"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"enum": [1, "a"]}),
]
BROKEN: list[Any] = [
    Raw(b"NaN"),
    Raw(b"-Infinity"),
    Raw(b"1e999"),
    Raw(b"-1e-999"),
    Raw(b"9" * 400),
    Raw(b"9" * 5000),
    Raw(b"1." + b"3" * 5000),
    Raw(b"[" * DEEP + b"]" * DEEP),
    Raw(b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    Raw(b'"\\ud800\\u0041"'),
    Raw(b'"\xff\xfe"'),
    Raw(b'"\xed\xa0\x80"'),
    Raw(b'"\x01"'),
    Raw(b'"\\x41"'),
    Raw(b"01"),
    Raw(b"truefalse"),
    Raw(b""),
]


def written(value: Any) -> bytes:
    """As JSON, but for what is not."""
    match value:
        case Raw():
            return value.written
        case Doubled():
            return object_of(value.members)
        case dict():
            return object_of(list(value.items()))
        case list():
            return b"[" + b",".join(written(each) for each in value) + b"]"
    return json.dumps(value).encode()


def object_of(members: list[tuple[str, Any]]) -> bytes:
    return b"{" + b",".join(json.dumps(name).encode() + b":" + written(held) for name, held in members) + b"}"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in `value`, itself included."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, held in inside for found in places(held, (*path, key)))]


def with_value(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy in which `new` stands at `path`."""
    if not path:
        return new
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = with_value(value[key], tuple(rest), new)
    return copy


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@st.composite
def broken(draw: st.DrawFn, body: dict[str, Any], fields: list[str]) -> bytes:
    """`body` with one or two values changed, a third of them also broken as a text; `fields` may be added."""
    changed: Any = body
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        changed = draw(changes(changed, fields, STRANGE))
        if not isinstance(changed, dict):
            return written(changed)
    match draw(st.sampled_from(["", "", "", "", "", "", "raw", "cut", "insert", "twice"])):
        case "raw":
            return written(draw(changes(changed, fields, BROKEN)))
        case "cut":
            data = written(changed)
            return data[: draw(st.integers(0, len(data)))]
        case "insert":
            data = written(changed)
            place = draw(st.integers(0, len(data)))
            return (
                data[:place]
                + draw(st.sampled_from([b"\x00", b"\xff", b",", b'"', b"\\", b"{"]))
                + data[place:]
            )
        case "twice":
            return written(changed) * 2
    return written(changed)


@st.composite
def changes(draw: st.DrawFn, body: dict[str, Any], fields: list[str], values: list[Any]) -> Any:
    """One change somewhere in `body`."""
    strange = draw(st.sampled_from(values))
    path = draw(st.sampled_from([*places(body)[1:], ()]))
    here = at(body, path)
    above = at(body, path[:-1])
    match draw(st.sampled_from(["replace", "replace", "add", "add", "double", "remove", "wrap", "repeat"])):
        case "add":
            return {**body, draw(st.sampled_from(fields)): strange}
        case "double" if isinstance(here, dict) and here:
            name = draw(st.sampled_from(sorted(here)))
            return with_value(body, path, Doubled([*here.items(), (name, strange)]))
        case "remove" if path and isinstance(above, dict):
            kept = {name: held for name, held in above.items() if name != path[-1]}
            return with_value(body, path[:-1], kept)
        case "wrap":
            return with_value(body, path, [here])
        case "repeat" if isinstance(here, list):
            return with_value(body, path, here * draw(st.sampled_from([0, 2, 300])))
    return with_value(body, path, strange)
