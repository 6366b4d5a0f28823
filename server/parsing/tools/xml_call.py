"""Calls written with a tag for every parameter: one parser and one grammar for the families that differ in the tags."""

from __future__ import annotations

import re

from msgspec import Struct

from ..interface import Parser, TagFormat, ToolFormat, ToolSchema
from . import grammar
from .calls import CallParser
from .json_text import quoted
from .object_shapes import Shape, shapes_of, types_in
from .reading import Marks, Steps
from .schema_types import ANY, TEXT, Types
from .xml_grammar import ParameterTags, parameters_tag
from .xml_values import read_text, read_typed

NAME = re.compile(r"[^\s<>\"'{}\[\](),;=]*")


class XmlWire(Struct, frozen=True, kw_only=True):
    """How a family writes a call.

    `around` encloses one call or several; a family without it has calls that stand alone. `bare`: calls are also
    understood without it. `call` is what comes before the name, after it, and at the end. `lead` is what the family
    puts between text and calls, `gap` between the tags of one call.
    """

    around: tuple[str, str] | None = None
    bare: bool = False
    call: tuple[str, str, str]
    parameters: ParameterTags
    lead: str
    gap: str
    shared: bool = False  # does one pair of `around` enclose all calls?


class XmlCallParser(CallParser):
    """Parses what `wire` describes. White space between tags is the format's."""

    def __init__(self, tools: list[ToolSchema], wire: XmlWire) -> None:
        begin = wire.call[0]
        self._wire = wire
        self._shapes: dict[str, list[Shape]] = {}  # of the tools that were called
        self.opening = (wire.around[0],) if wire.around else (begin,)
        if wire.around:
            if wire.bare:
                self.opening += (begin,)
            else:
                self.reopening = (begin,)
            self.closing = (wire.around[1],)
        self.closing += (wire.call[2],)
        self.leads = (wire.lead,)
        self._openings = Marks(*wire.parameters.opened, "\n")  # a key has one line
        self._ends = Marks(wire.parameters.end, leads=(wire.parameters.pad,) if wire.parameters.pad else ())
        super().__init__(tools)

    def call(self, mark: str) -> Steps[bool]:
        begin, named, end = self._wire.call
        key = self._wire.parameters.begin
        if mark != begin:
            yield from self.space()
            if not (yield from self.expect(begin)):
                return False
        name = yield from self.take_while(NAME)
        follows = None
        if named:
            certain = yield from self.expect(named)
        else:
            yield from self.space()
            certain = follows = yield from self.expect(key, end)
        if not name or not certain:
            return False
        self.start(name)
        separator = "{"
        while True:
            self.attempt()
            if follows is None:
                yield from self.space()
                follows = yield from self.expect(key, end)
            if follows == key:
                follows = None
                if not (yield from self._parameter(name, separator)):
                    return True
                separator = ", "
            else:
                self._finish(separator, well=follows == end, cut_off=self.cut_off(key, end))
                return True

    def _finish(self, separator: str, *, well: bool, cut_off: bool) -> None:
        """The call's end, or something else in its place (content), or the answer's end."""
        if well or not cut_off:
            self.arguments("{}" if separator == "{" else "}")
        else:
            self.take(len(self.text))
        if well or cut_off:
            self.keep()
        else:
            self.give_up()

    def _parameter(self, tool: str, separator: str) -> Steps[bool]:
        """Reads from the parameter's name to its end tag. False: there was none."""
        tags = self._wire.parameters
        parts: list[str] = []
        opened, _ = (yield from self.until(self._openings, parts.append)) or (None, "")
        if opened in tags.opened and tags.value:
            yield from self.space()
            if not (yield from self.expect(tags.value)):
                opened = None
        if opened not in tags.opened:
            self._finish(separator, well=False, cut_off=self.cut_off(tags.value))
            return False
        self.keep()
        key = "".join(parts)
        self.arguments(f"{separator}{quoted(key)}: ")
        if tags.pad:
            yield from self.expect(tags.pad)
        types = self._types(tool, key, tags.opened[opened])
        if types == TEXT:
            return (yield from read_text(self, self._ends))
        return (yield from read_typed(self, self._ends, types))

    def _types(self, tool: str, key: str, is_text: bool | None) -> Types:
        """`is_text`: what the tag itself says."""
        if is_text:
            return TEXT
        known = self.tools.get(tool)
        types = ANY
        if known is not None:
            if tool not in self._shapes:
                self._shapes[tool] = shapes_of(known.parameters)
            types = types_in(self._shapes[tool], known.parameters, key)
        return types if is_text is None else (types - TEXT or ANY - TEXT)


class XmlFormat(ToolFormat):
    """A format whose `wire` says all."""

    wire: XmlWire

    def parser(self, tools: list[ToolSchema]) -> Parser:
        return XmlCallParser(tools, self.wire)

    def tag(self, tools: list[ToolSchema], *, at_least_one: bool, at_most_one: bool) -> TagFormat:
        wire = self.wire
        begin, named, end = wire.call
        outer_begin, outer_end = (
            (wire.around[0] + wire.gap, wire.gap + wire.around[1]) if wire.around else ("", "")
        )
        call_begin, call_end = ("", "") if wire.shared else (outer_begin, outer_end)
        calls = [
            grammar.tag(
                f"{call_begin}{begin}{tool.name}{named}{wire.gap}",
                parameters_tag(grammar.parameters_of(tool, enforced=at_least_one), wire.parameters, wire.gap),
                f"{end}{call_end}",
            )
            for tool in tools
        ]
        bare = (begin,) if wire.around else ()
        trigger = wire.around[0] if wire.around else begin
        if wire.shared:
            block = grammar.separated(calls, wire.gap, at_most_one=at_most_one)
            calls = [grammar.tag(outer_begin, block, outer_end)]
            at_most_one = at_most_one or at_least_one
        answer = grammar.answer(
            calls, trigger, wire.lead, at_least_one=at_least_one, at_most_one=at_most_one, excludes=bare
        )
        return grammar.sequence(grammar.optional(grammar.text(wire.lead)), answer) if at_least_one else answer
