"""What a request demands of its output, whichever of the fields that mean the same says it.

`response_format` is OpenAI's, `structured_outputs` vLLM's, `guided_*` what vLLM had before; `regex`, `ebnf`,
`json_schema` and `structural_tag` at the top are SGLang's, `grammar` llama.cpp's. A request has one constraint, and it
is enforced or refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from ...scheduler.messages import GrammarSpec
from ..api.protocol import GenerationRequest
from ..limits import LimitOptions
from ..parsing.interface import TagFormat
from .conjunction import at
from .errors import ConstraintError
from .schema import check_schema
from .tags import check_grammar_text, check_regex, check_tag, legacy_tag

ANY_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": {}}
BACKENDS = frozenset({"auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer"})
BACKEND_OPTIONS = frozenset({"no-fallback", "disable-any-whitespace", "no-additional-properties"})
# Patterns of white space that hold for any run of spaces, tabs and line feeds.
FREE_WHITESPACE = frozenset(
    {r"\s*", r"[\s]*", r"[ \n\t]*", r"[\n\t ]*", r"[ \t\n]*", r"[ \t\n\r]*", r"[ \n\r\t]*"}
)
LARK_RULE = re.compile(r"^\s*[?!]{0,2}[a-zA-Z_][a-zA-Z_0-9.{},]*\s*:(?!:=)", re.MULTILINE)


class Constraint(Struct, frozen=True):
    """`param` is the field that brought it, `spec` the whole output as it must be."""

    param: str
    spec: GrammarSpec

    def tag(self) -> TagFormat:
        """The same as a node of a structural tag. Raises `ConstraintError` for a grammar in Lark's language.

        JSON without free white space, which is one canonical form by itself, may have one white-space character
        between its elements here: structural tags have nothing narrower.
        """
        text = self.spec.text
        match self.spec.kind:
            case "json_schema" | "json":
                schema = msgspec.json.decode(text) if text else ANY_OBJECT
                node: TagFormat = {"type": "json_schema", "json_schema": schema}
                return node if self.spec.any_whitespace else {**node, "max_whitespace_cnt": 1}
            case "regex":
                return {"type": "regex", "pattern": text}
            case "ebnf":
                return {"type": "grammar", "grammar": text}
            case "structural_tag":
                format: TagFormat = msgspec.json.decode(text)["format"]
                return format
        raise ConstraintError(
            self.param, "a Lark grammar cannot be used together with thinking or tools: write it as GBNF"
        )


def constraint_of(request: GenerationRequest, limits: LimitOptions) -> Constraint | None:
    """None if any text will do. Raises `ConstraintError` for what cannot be enforced, two constraints at once, and
    fields that contradict one."""
    readers: list[tuple[str, Callable[[], Constraint]]] = [
        ("response_format", lambda: of_response_format(request, limits)),
        ("structured_outputs", lambda: of_structured_outputs(request, limits)),
        *of_single_fields(request, limits),
    ]
    found = [
        (param, read)
        for param, read in readers
        if getattr(request, param) not in (None, False) and not asks_for_nothing(request, param)
    ]
    check_options(request, [param for param, _ in found])
    if len(found) > 1:
        raise ConstraintError(
            found[1][0], f"is a constraint on the output, and {found[0][0]} is another: give one"
        )
    if not found:
        return None
    constraint = found[0][1]()
    if request.ignore_eos:
        raise ConstraintError(
            "ignore_eos", f"contradicts {constraint.param}: an output that fulfils it has to end"
        )
    if request.allowed_token_ids is not None:
        raise ConstraintError(
            "allowed_token_ids", f"contradicts {constraint.param}: both say which tokens may come"
        )
    return constraint


def asks_for_nothing(request: GenerationRequest, param: str) -> bool:
    return param == "response_format" and request.response_format == {"type": "text"}


def of_single_fields(
    request: GenerationRequest, limits: LimitOptions
) -> list[tuple[str, Callable[[], Constraint]]]:
    """Fields that are one constraint each."""
    loose = loose_json(request)

    def json(param: str) -> Callable[[], Constraint]:
        return lambda: of_schema(getattr(request, param), param, param, limits, **loose)

    def of(
        param: str, make: Callable[[Any, str, LimitOptions], Constraint]
    ) -> tuple[str, Callable[[], Constraint]]:
        return param, lambda: make(getattr(request, param), param, limits)

    return [
        ("guided_json", json("guided_json")),
        ("json_schema", json("json_schema")),
        (
            "guided_json_object",
            lambda: of_schema(ANY_OBJECT, "guided_json_object", "guided_json_object", limits, **loose),
        ),
        of("guided_regex", of_regex),
        of("regex", of_regex),
        of("guided_choice", of_choice),
        of("guided_grammar", of_grammar),
        of("grammar", of_grammar),
        of("ebnf", of_ebnf),
        of("structural_tag", of_structural_tag),
    ]


def loose_json(request: GenerationRequest) -> dict[str, Any]:
    """How the JSON of the old `guided_*` fields is written."""
    options = (request.guided_decoding_backend or "").partition(":")[2].split(",")
    return {
        "compact": "disable-any-whitespace" in options,
        "whitespace": request.guided_whitespace_pattern,
        "whitespace_param": "guided_whitespace_pattern",
    }


def check_options(request: GenerationRequest, params: list[str]) -> None:
    """`guided_decoding_backend` names one of the programs that enforce constraints; which one does is no difference."""
    if request.guided_decoding_backend is not None:
        name, _, options = request.guided_decoding_backend.partition(":")
        unknown = set(filter(None, options.split(","))) - BACKEND_OPTIONS
        if name not in BACKENDS or unknown:
            raise ConstraintError(
                "guided_decoding_backend",
                f"must be one of {', '.join(sorted(BACKENDS))}, with `:` and options of "
                f"{', '.join(sorted(BACKEND_OPTIONS))}",
            )
    if request.guided_whitespace_pattern is not None and not {"guided_json", "guided_json_object"} & {
        *params
    }:
        raise ConstraintError("guided_whitespace_pattern", "has a meaning only beside guided_json")


# ------------------------------------------------------------------------------------- fields of several kinds


def of_response_format(request: GenerationRequest, limits: LimitOptions) -> Constraint:
    form = request.response_format
    assert form is not None
    path = "response_format"
    match form.get("type"):
        case "json_object" if "value" not in form:
            only(form, path, {"type", "schema"})
            return of_schema(form.get("schema", ANY_OBJECT), "response_format.schema", path, limits)
        case "json_object" | "json":  # as text-generation-inference and Hugging Face's client write it
            only(form, path, {"type", "value"})
            return of_schema(form.get("value", ANY_OBJECT), "response_format.value", path, limits)
        case "regex":
            only(form, path, {"type", "value"})
            return Constraint(path, of_regex(form.get("value"), "response_format.value", limits).spec)
        case "json_schema":
            only(form, path, {"type", "json_schema"})
            return of_named_schema(form.get("json_schema"), limits)
        case "structural_tag":
            if "format" in form:
                only(form, path, {"type", "format"})
                return tag_constraint(form["format"], "response_format.format", path, limits)
            only(form, path, {"type", "structures", "triggers"})
            format = legacy_tag(form.get("structures"), form.get("triggers"), path)
            return tag_constraint(format, path, path, limits)
    raise ConstraintError(
        "response_format.type" if "type" in form else path,
        "its `type` must be text, json_object, json_schema or structural_tag",
    )


def of_named_schema(named: Any, limits: LimitOptions) -> Constraint:
    """`{name, schema, strict, description}`; name and description are notes, and every schema is enforced strictly."""
    path = "response_format.json_schema"
    if not isinstance(named, dict):
        raise ConstraintError(path, "must be an object with a `schema`")
    only(named, path, {"name", "schema", "strict", "description"})
    for name, kind, what in (
        ("name", str, "a text"),
        ("description", str, "a text"),
        ("strict", bool, "a boolean"),
    ):
        if not isinstance(named.get(name), (kind, type(None))):
            raise ConstraintError(at(path, name), f"must be {what}")
    if named.get("schema") is None:
        raise ConstraintError(at(path, "schema"), "is required")
    return of_schema(named["schema"], at(path, "schema"), "response_format", limits)


def of_structured_outputs(request: GenerationRequest, limits: LimitOptions) -> Constraint:
    given = request.structured_outputs
    assert given is not None
    path = "structured_outputs"
    kinds = [
        kind
        for kind in ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
        if getattr(given, kind) not in (None, False)
    ]
    if len(kinds) != 1:
        raise ConstraintError(
            path,
            "needs exactly one of json, regex, choice, grammar, json_object and structural_tag"
            + (f", not {' and '.join(kinds)}" if kinds else ""),
        )
    (kind,) = kinds
    param = f"{path}.{kind}"
    value = getattr(given, kind)
    if kind in ("json", "json_object"):
        return of_schema(
            ANY_OBJECT if kind == "json_object" else value,
            param,
            param,
            limits,
            compact=bool(given.disable_any_whitespace),
            whitespace=given.whitespace_pattern,
            whitespace_param=f"{path}.whitespace_pattern",
        )
    if given.whitespace_pattern is not None:
        raise ConstraintError(f"{path}.whitespace_pattern", "has a meaning only beside json or json_object")
    make = {
        "regex": of_regex,
        "choice": of_choice,
        "grammar": of_grammar,
        "structural_tag": of_structural_tag,
    }
    return make[kind](value, param, limits)


def only(given: dict[str, Any], path: str, names: set[str]) -> None:
    """Nothing but these fields: another would be passed over."""
    for name in given:
        if name not in names:
            raise ConstraintError(at(path, name), "is not a field that is known here")


# ---------------------------------------------------------------------------------------------- one kind each


def of_schema(
    schema: Any,
    path: str,
    param: str,
    limits: LimitOptions,
    *,
    compact: bool = False,
    whitespace: str | None = None,
    whitespace_param: str = "",
) -> Constraint:
    """`schema` as an object, or as its text. `compact`: no white space but one space behind commas and colons."""
    if isinstance(schema, str):
        schema = parsed(schema, path, limits.max_schema_bytes)
    text = written(check_schema(schema, path, limits))
    if whitespace is not None:
        compact = compact or not is_free(whitespace, whitespace_param)
    return Constraint(param, GrammarSpec("json_schema", text, any_whitespace=not compact))


def is_free(pattern: str, path: str) -> bool:
    """Does the client's pattern of white space allow what the grammar may put between elements?

    If it does not, but takes nothing and one space, then the canonical form is within it.
    """
    try:
        fits = re.compile(pattern[:200]).fullmatch
    except (re.error, RecursionError, OverflowError):
        raise ConstraintError(path, "is not a regular expression") from None
    if len(pattern) <= 200 and fits("") and fits(" "):
        return pattern in FREE_WHITESPACE
    raise ConstraintError(
        path,
        "cannot be enforced: white space is free within a bound, or none but one space behind commas and colons",
    )


def of_regex(pattern: Any, path: str, limits: LimitOptions) -> Constraint:
    return Constraint(path, GrammarSpec("regex", check_regex(pattern, path, limits)))


def of_choice(choices: Any, path: str, limits: LimitOptions) -> Constraint:
    """One of several exact texts."""
    if not isinstance(choices, list) or not choices or not all(isinstance(text, str) for text in choices):
        raise ConstraintError(path, "must be a list of texts that is not empty")
    if len(choices) > limits.max_choices:
        raise ConstraintError(
            path,
            f"{len(choices)} texts are more than this server allows, {limits.max_choices} (--max-choices)",
        )
    size = sum(len(text.encode("utf-8", "replace")) for text in choices)
    if size > limits.max_grammar_bytes:
        raise ConstraintError(
            path,
            f"{size} bytes are more than this server allows, {limits.max_grammar_bytes} (--max-grammar-bytes)",
        )
    if not any(choices):
        raise ConstraintError(path, "must have a text that is not empty")
    texts = [{"type": "const_string", "value": text} for text in dict.fromkeys(choices)]
    format = texts[0] if len(texts) == 1 else {"type": "or", "elements": texts}
    return Constraint(path, tag_spec(format))


def of_grammar(grammar: Any, path: str, limits: LimitOptions) -> Constraint:
    """GBNF (what llama.cpp and xgrammar call EBNF) has `::=`, Lark has rules of the form `name: ...`."""
    text = check_grammar_text(grammar, path, limits)
    if "::=" in text:
        return Constraint(path, GrammarSpec("ebnf", text))
    if LARK_RULE.search(text):
        return Constraint(path, GrammarSpec("lark", text))
    raise ConstraintError(path, "is neither GBNF (`root ::= ...`) nor Lark (`start: ...`)")


def of_ebnf(grammar: Any, path: str, limits: LimitOptions) -> Constraint:
    return Constraint(path, GrammarSpec("ebnf", check_grammar_text(grammar, path, limits)))


def of_structural_tag(tag: Any, path: str, limits: LimitOptions) -> Constraint:
    """`{type, format}` or `{structures, triggers}`, as an object or as its text."""
    if isinstance(tag, str):
        tag = parsed(tag, path, limits.max_grammar_bytes)
    if not isinstance(tag, dict):
        raise ConstraintError(path, "must be an object")
    if tag.get("type", "structural_tag") != "structural_tag":
        raise ConstraintError(at(path, "type"), "must be structural_tag")
    if "format" in tag:
        only(tag, path, {"type", "format"})
        return tag_constraint(tag["format"], at(path, "format"), path, limits)
    only(tag, path, {"type", "structures", "triggers"})
    return tag_constraint(legacy_tag(tag.get("structures"), tag.get("triggers"), path), path, path, limits)


def tag_constraint(format: Any, path: str, param: str, limits: LimitOptions) -> Constraint:
    return Constraint(param, tag_spec(check_tag(format, path, limits)))


def tag_spec(format: TagFormat) -> GrammarSpec:
    return GrammarSpec("structural_tag", written({"type": "structural_tag", "format": format}))


def parsed(text: str, path: str, limit: int) -> Any:
    """A part of the request that came as the text of its JSON."""
    if len(text) > limit:
        raise ConstraintError(path, f"{len(text)} characters are more than this server allows, {limit}")
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        raise ConstraintError(path, "is not valid JSON") from None
    except RecursionError:
        raise ConstraintError(path, "is nested too deeply") from None


def written(value: Any) -> str:
    """JSON, members in the order that they have."""
    return msgspec.json.encode(value).decode()
