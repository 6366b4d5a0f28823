"""The reference page docs/api.md: every field of every endpoint, and what becomes of it.

`python -m penstock.server.api.reference > docs/api.md` writes the page.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import Struct

from .surface import EITHER, OPERATIONS, SOME, Field, Operation, bodies, described, fields_of

HEAD = """# The HTTP API

This page is generated from the code by `python -m penstock.server.api.reference > docs/api.md`.

A field is *supported* (it does what its note says), *ignored* (taken and without effect, because it asks for nothing
that would change an answer) or *refused* (a 400 that names it, unless it asks for nothing: null, false, empty or the
neutral value). No field of these tables is dropped silently. A field that is in none of them is passed over with a line in
the debug log. Wrong types and values out of range are a 400 that names the field, and so are wishes that contradict each
other; TGI's paths say 422 where the others say 400. `GET /openapi.json` says the same to programs.

Every field may be null, which is as good as leaving it out, unless it is required.
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD, "## Endpoints", "", "| method | path | what it does | body |", "| --- | --- | --- | --- |"]
    lines += [endpoint_row(operation) for operation in OPERATIONS]
    whole = bodies()
    for struct in described():
        lines += ["", f"## {struct.__name__}", ""]
        if struct in whole:
            paths = [f"`{each.method} {each.path}`" for each in OPERATIONS if struct in each.bodies]
            lines += [f"Taken by {', '.join(paths)}.", ""]
        lines += table(struct)
    return "\n".join(lines).rstrip() + "\n"


def endpoint_row(operation: Operation) -> str:
    taken = " or ".join(link(body.__name__) for body in operation.bodies)
    query = "".join(f" `?{each.name}=`: {each.note}" for each in operation.query)
    summary = operation.summary + query + (" Needs no key." if operation.open else "")
    return f"| {operation.method} | `{operation.path}` | {summary} | {taken} |"


def link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def table(struct: type[Struct]) -> Iterator[str]:
    yield "| field | type | | note |"
    yield "| --- | --- | --- | --- |"
    refused = []
    for field in fields_of(struct):
        if field.status == "refused":
            refused.append(f"`{field.name}` ({field.note.rstrip('.')})")
        else:
            yield f"| `{field.name}` | {field_type(field)} | {field.status} | {field.note} |"
    for name, other in EITHER.get(struct, ()):
        yield ""
        yield f"Either `{name}` or `{other}` is required."
    if struct in SOME:
        yield ""
        yield f"One of {', '.join(f'`{name}`' for name in SOME[struct])} is required."
    if refused:
        yield ""
        yield f"Refused, for what this server lacks: {', '.join(refused)}."


def field_type(field: Field) -> str:
    if field.shape is None:
        return type_text(field.type)
    words = field.shape.words
    for part in field.shape.parts:
        words = words.replace(part.__name__, link(part.__name__))
    return words


def type_text(type_: Any) -> str:
    """A type in the words of JSON."""
    origin = get_origin(type_)
    if origin is typing.Annotated:
        inner, *rest = get_args(type_)
        bounds = [bound for meta in rest if isinstance(meta, msgspec.Meta) for bound in bounds_of(meta)]
        return type_text(inner) + (f" ({', '.join(bounds)})" if bounds else "")
    if origin in (typing.Union, types.UnionType):
        return " or ".join(
            dict.fromkeys(type_text(part) for part in get_args(type_) if part is not types.NoneType)
        )
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(type_))
    if origin in (list, tuple):
        return f"list of {type_text(get_args(type_)[0])}"
    if origin is dict:
        return "object"
    if isinstance(type_, type) and issubclass(type_, Struct):
        return link(type_.__name__)
    names = {str: "text", int: "integer", float: "number", bool: "boolean", Any: "any", dict: "object"}
    return names[type_]


def bounds_of(meta: msgspec.Meta) -> Iterator[str]:
    for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
        value = getattr(meta, name)
        if value is not None:
            yield f"{sign} {number(value)}"
    if meta.min_length:
        yield "not empty" if meta.min_length == 1 else f"at least {meta.min_length}"
    if meta.max_length is not None:
        yield f"at most {meta.max_length} long"


def number(value: float) -> str:
    """Large bounds are powers of two, or one less."""
    if abs(value) < 10**6:
        return f"{value:g}"
    whole = round(value)
    power = f"{'-' if whole < 0 else ''}2^{abs(whole + (whole > 0)).bit_length() - 1}"
    return f"{power} - 1" if whole > 0 else power


if __name__ == "__main__":
    print(page(), end="")
