"""The body of a request: read within its limit, decoded into its Struct, every defect a 400 that names the field."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Scope

from ..requests.generation import ClientGone
from .errors import ApiError, bad_request, shown

T = TypeVar("T")
PATH = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?$", re.DOTALL)
UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)
SMALL_BYTES = 64 << 10  # bodies for which it may be told by a second, slow reading what is wrong with them
FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[\.\.\.\]")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises a 413 as soon as it is known to be longer than `limit` bytes."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise too_large(limit)
    chunks = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the request body is larger than {limit} bytes: send less or raise --max-request-bytes",
        headers={"Connection": "close"},
    )


def decode(decoder: msgspec.json.Decoder[T], body: bytes, at: str = "") -> T:
    """The body as its Struct; `at` is the path of the part that is decoded, "" for all of it. Raises a 400."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid_field(str(error), body, at) from None
    except msgspec.DecodeError as error:
        raise bad_request(at or None, f"the body is not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise bad_request(at or None, "the body is not valid UTF-8") from None
    except RecursionError:
        raise bad_request(at or None, "the body is nested too deeply") from None


def convert(value: object, type: type[T], at: str) -> T:
    """A part of a decoded body as `type`; `at` is its path. Raises a 400."""
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as error:
        what, path = explain(str(error), at)
        raise bad_request(path, what) from None
    except RecursionError:
        raise bad_request(at, "it is nested too deeply") from None


def invalid_field(text: str, body: bytes, at: str) -> ApiError:
    what, path = explain(text, at)
    if not path:
        return ApiError(400, f"the body is not what this endpoint takes: {what}")
    value = value_at(body, path if not at else path[len(at) :])
    return bad_request(path, what if value is None else f"{what}: {value}")


def explain(text: str, at: str) -> tuple[str, str]:
    """msgspec's message as (what is wrong, path of the field such as `messages[0].role`)."""
    match = PATH.match(text)
    assert match is not None
    what = match["what"]
    path = (at + (match["path"] or "")).lstrip(".")
    for pattern, word in ((UNKNOWN, "is not a field that this endpoint knows"), (MISSING, "is required")):
        found = pattern.match(what)
        if found is not None:
            return word, f"{path}.{shown_name(found['name'])}" if path else shown_name(found["name"])
    return (f"one of its keys: {what}" if match["key"] else what), path


def shown_name(name: str) -> str:
    return shown(name).strip("`")


def value_at(body: bytes, path: str) -> str | None:
    """What the client had there, shortened; None if it cannot be told simply."""
    if len(body) > SMALL_BYTES:
        return None
    try:
        value: Any = msgspec.json.decode(body)
        for name, index in STEP.findall("." + path.lstrip(".")):
            value = value[name] if name else value[int(index)]
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError, RecursionError):
        return None
    if isinstance(value, (dict, list)):
        return None
    return (
        f"got {shown(json.dumps(value, ensure_ascii=False))}"
        if not isinstance(value, str)
        else f"got {shown(value)}"
    )


def refuse_duplicates(body: bytes, names: tuple[str, ...]) -> None:
    """A 400 if a field of the object comes twice: two readers of such a body could understand two things.

    Decoding keeps one value for each name. A name that stands in the body more often than in the values kept, and
    once before its own, was there twice, or in a value that was not kept. Only of small bodies is it said which.
    """
    if len(body) <= SMALL_BYTES:
        suspects = [name for name in names if body.count(quoted(name)) > 1]
        if not suspects:
            return
    kept = decode(FIELDS, body)
    if len(body) > SMALL_BYTES:
        suspects = [name for name in names if name in kept]
    for name in suspects:
        inside = sum(bytes(value).count(quoted(name)) for value in kept.values())
        if body.count(quoted(name)) > inside + (name in kept):
            raise bad_request(*twice(body))


def unknown_fields(body: bytes, names: tuple[str, ...]) -> list[str]:
    """The names in the body's object that are none of `names`; none if they cannot be read."""
    try:
        return sorted(set(FIELDS.decode(body)).difference(names))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []


def quoted(name: str) -> bytes:
    return b'"' + name.encode() + b'"'


def twice(body: bytes) -> tuple[str | None, str]:
    """(the field that is given twice, what is wrong with it)."""
    pairs: list[tuple[str, Any]] = []

    def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal pairs
        pairs = found  # the outermost object comes last
        return dict(found)

    seen: set[str] = set()
    if len(body) <= SMALL_BYTES:
        # Its reader is stricter than the decoder about what nobody asked for: other fields' text, depth and digits.
        try:
            json.loads(body, object_pairs_hook=keep)
        except (ValueError, RecursionError):
            pairs = []
        for name, _ in pairs:
            if name in seen:
                return shown_name(name), "is given twice"
            seen.add(name)
    return None, "a field of the body is given twice"
