"""The structural tag of parameters that are written as bare text between tags: what `xml_values.py` reads back.

xgrammar's own XML styles come close, but with them a string may contain its end tag when its length or a pattern
bounds it, and white space at a string's ends is not told from the format's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from ...structured import char_sets, regex
from ...structured.char_sets import Ranges
from ...structured.regex_reader import read_regex
from ..interface import TagFormat
from . import grammar
from .bare_patterns import ANGLE, beginning_otherwise, without_angle
from .json_text import quoted
from .object_shapes import Others, Shape, shapes_of
from .schema_types import ANY, TEXT, Types, resolve, type_of, types_of
from .xml_values import openers, to_json

NOT_IN_KEYS = '<>"\r\n'  # of names that the model makes up
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const")
SCALARS = "-0123456789tfn"  # what numbers and constants begin with


class ParameterTags(Struct, frozen=True, kw_only=True):
    """How one parameter is written: `begin` key `opened` [`value`] `pad` text `pad` `end`.

    `opened` maps what may follow the key to what it says of the text: a string's, JSON, or (None) nothing. `value`
    is a tag of its own before the text.
    """

    begin: str
    opened: dict[str, bool | None]
    value: str = ""
    end: str
    pad: str = ""

    def open(self, *, is_text: bool) -> str:
        """What follows the key of a string, or of anything else."""
        says = {said: form for form, said in self.opened.items()}
        return says.get(is_text) or says[None]

    @property
    def tells(self) -> bool:
        """Do the tags tell a string from JSON?"""
        return True in self.opened.values()


def parameters_tag(schema: Mapping[str, Any], tags: ParameterTags, gap: str) -> TagFormat:
    """The parameters of an object, in the order of its properties, with `gap` after each.

    `schema` is as `check_schema` of `server/structured/schema.py` rewrites it: each part of it is a reference, an
    enumeration, `anyOf`, or one type.
    """
    writer = _Writer(schema, tags, gap)
    return grammar.either(*(writer.parameters(shape) for shape in shapes_of(schema)))


class _Writer:
    def __init__(self, root: Mapping[str, Any], tags: ParameterTags, gap: str) -> None:
        self._root = root
        self._tags = tags
        self._gap = gap
        self._definitions = grammar.definitions(root)
        written = msgspec.json.encode(root).decode()
        self._bounded = any(f'"{keyword}":' in written for keyword in BOUNDS)

    def parameters(self, shape: Shape) -> TagFormat:
        """All of one shape."""
        written = []
        for parameter in shape.parameters:
            one = self._parameter(grammar.text(parameter.key), parameter.schema)
            written.append(one if parameter.required else grammar.optional(one))
        if shape.others is not None:
            written.append(self._others(shape.others))
        return grammar.sequence(*written) if written else grammar.text("")

    def _others(self, others: Others) -> TagFormat:
        key = others.names_of(char_sets.complement((ord(char), ord(char)) for char in NOT_IN_KEYS))
        if key is None:
            return grammar.text("")
        return grammar.repeated(self._parameter(grammar.pattern(key), others.schema), others.low, others.high)

    def _parameter(self, key: TagFormat, schema: object) -> TagFormat:
        """One parameter with its tags."""
        tags = self._tags
        text = self._strings(schema, types_of(schema, self._root), set())
        part = self._without_text(schema, set())
        json = None if part is None else grammar.json_value({**part, **self._definitions})
        between = (self._gap + tags.value if tags.value else "") + tags.pad
        if tags.tells:
            forms = [
                grammar.sequence(grammar.text(tags.open(is_text=is_text) + between), value)
                for is_text, value in ((True, text), (False, json))
                if value is not None
            ]
        else:
            values = [value for value in (json, text) if value is not None]
            forms = [
                grammar.sequence(grammar.text(tags.open(is_text=True) + between), grammar.either(*values))
            ]
        end = grammar.text(tags.pad + tags.end + self._gap)
        return grammar.sequence(grammar.text(tags.begin), key, grammar.either(*forms), end)

    # what is written as JSON

    def _without_text(self, schema: object, seen: set[int]) -> Mapping[str, Any] | None:
        """The part of `schema` that is no string, or None. What was `seen` is already in."""
        types = types_of(schema, self._root)
        if types == TEXT or id(schema) in seen:
            return None
        seen.add(id(schema))
        if not types & TEXT and isinstance(schema, Mapping):
            return schema
        if isinstance(schema, Mapping):
            if isinstance(schema.get("$ref"), str):
                return self._without_text(resolve(schema["$ref"], self._root), seen)
            if isinstance(schema.get("enum"), list):
                return {"enum": [value for value in schema["enum"] if type_of(value) != "string"]}
            if isinstance(schema.get("anyOf"), list):
                parts = [self._without_text(branch, seen) for branch in schema["anyOf"]]
                kept = [part for part in parts if part is not None]
                return {"anyOf": kept} if kept else None
        return {"anyOf": [{"type": name} for name in sorted(ANY - TEXT - {"integer"})]}

    # what is written as it is

    def _strings(self, schema: object, types: Types, seen: set[int]) -> TagFormat | None:
        """The strings of `schema`, a part of one whose values may have `types`; None if it has no more than `seen`."""
        if id(schema) in seen or not types_of(schema, self._root) & TEXT:
            return None
        seen.add(id(schema))
        if isinstance(schema, Mapping):
            if isinstance(schema.get("$ref"), str):
                return self._strings(resolve(schema["$ref"], self._root), types, seen)
            if isinstance(schema.get("enum"), list):
                return _either(
                    [grammar.text(value) for value in schema["enum"] if self._readable(value, types)]
                )
            if isinstance(schema.get("anyOf"), list):
                return _either([self._strings(branch, types, seen) for branch in schema["anyOf"]])
            if isinstance(schema.get("pattern"), str):
                return self._matching(schema["pattern"], types)
        text: TagFormat = {"type": "any_text", "excludes": [self._tags.end]}
        taken = self._taken(types)
        if not taken:
            return text
        first = regex.Chars(char_sets.complement(char_sets.union(taken, ANGLE)))
        return grammar.sequence(grammar.pattern(regex.written(first)), text)

    def _matching(self, pattern: str, types: Types) -> TagFormat | None:
        node: regex.Node | None = without_angle(read_regex(pattern, "pattern", search=True))
        taken = self._taken(types)
        if taken and node is not None:
            node = beginning_otherwise(node, taken)
        return None if node is None else grammar.pattern(regex.written(node))

    def _readable(self, value: object, types: Types) -> bool:
        """Is this string read back as itself?"""
        if not isinstance(value, str) or self._tags.end in value:
            return False
        return self._tags.tells or types == TEXT or to_json(value, types) == quoted(value)

    def _taken(self, types: Types) -> Ranges:
        """What a string must not begin with, lest it be read as something else that might not do."""
        if self._tags.tells or types == TEXT:
            return ()
        chars = openers(types) + (SCALARS if self._bounded else "")
        return char_sets.union(char_sets.SPACE, ((ord(char), ord(char)) for char in chars))


def _either(forms: list[TagFormat | None]) -> TagFormat | None:
    found = [form for form in forms if form is not None]
    return grammar.either(*found) if found else None
