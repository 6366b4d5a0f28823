"""What the text of a chat's answer must look like: tools, a constraint on the text and bounds of the thinking, as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec

from ...scheduler.messages import GrammarSpec
from ..limits import LimitOptions
from ..parsing.choice import AnswerFormats
from ..parsing.combine import answer_tag
from ..parsing.harmony import HarmonyReasoning, HarmonyTools
from ..parsing.interface import TagFormat, ToolFormat, ToolSchema
from ..parsing.json_calls import JsonCalls
from ..structured.errors import ConstraintError
from ..structured.schema import check_schema
from .errors import bad_request
from .tool_choice import ToolUse

encode = msgspec.json.Encoder().encode  # in the order of the members, which is that of the output


class TextConstraint(Protocol):
    """What the client demands of the answer's text. `param` is the field that says so."""

    @property
    def spec(self) -> GrammarSpec: ...

    @property
    def param(self) -> str: ...

    def tag(self) -> TagFormat: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRules:
    """What a chat request demands of its answer. `budget` is the most tokens of thinking, None any number."""

    prompt: str
    formats: AnswerFormats
    use: ToolUse
    constraint: TextConstraint | None
    budget: int | None


def tool_format(formats: AnswerFormats, use: ToolUse) -> ToolFormat | None:
    """How calls are written in this answer; a model without a format of its own is made to write JSON if it must call."""
    if formats.tools is None and use.required:
        return HarmonyTools() if isinstance(formats.reasoning, HarmonyReasoning) else JsonCalls()
    return formats.tools


def answer_grammar(rules: AnswerRules, *, limits: LimitOptions) -> GrammarSpec | None:
    """None if any text will do. Raises a 400 for a schema that cannot be enforced."""
    formats, use, constraint = rules.formats, rules.use, rules.constraint
    tools = tool_format(formats, use)
    budget = None if formats.reasoning is None else rules.budget
    constrained = use.constrained and tools is not None
    if constraint is None and budget is None and not constrained:
        return None
    if constraint is not None and formats.reasoning is None and not use.schemas:
        return constraint.spec
    try:
        text = None if constraint is None else constraint.tag()
    except ConstraintError as error:
        raise bad_request(error.path, error.message) from None
    tag = answer_tag(
        formats.reasoning,
        tools,
        checked_schemas(use, everything=use.required or text is not None, limits=limits),
        text,
        prompt=rules.prompt,
        at_least_one=use.required,
        at_most_one=use.at_most_one,
        budget=budget,
    )
    if constraint is not None and tag is text:
        return constraint.spec
    return GrammarSpec("structural_tag", encode({"type": "structural_tag", "format": tag}).decode())


def checked_schemas(use: ToolUse, *, everything: bool, limits: LimitOptions) -> list[ToolSchema]:
    """The tools with their parameters as the compiler takes them; those that are not enforced stay as they are."""
    checked = []
    for place, schema in zip(use.places, use.schemas, strict=True):
        if everything or schema.strict:
            path = f"tools[{place}].function.parameters"
            try:
                parameters = check_schema({"type": "object", **schema.parameters}, path, limits)
            except ConstraintError as error:
                raise bad_request(error.path, error.message) from None
            schema = ToolSchema(schema.name, parameters, strict=schema.strict)
        checked.append(schema)
    return checked
