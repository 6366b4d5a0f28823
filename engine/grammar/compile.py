"""From a `GrammarSpec` to a compiled grammar, or one clear line about what is wrong with it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from ...scheduler.messages import GrammarSpec

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, TokenizerInfo

# Enough for pretty-printed JSON (four levels, four spaces each); a model that loves newlines is stopped here.
MAX_WHITESPACE = 20
ANY_OBJECT = '{"type": "object"}'
MAX_MESSAGE_CHARS = 400
SOURCE_PLACE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")
FAILED_CHECK = re.compile(r"Check failed: \(.*?\) is (?:false|true): ")
QUOTED_INPUT = re.compile(r"( near: )?\.?\s*The JSON string is:.*", re.DOTALL)


class GrammarError(ValueError):
    """The grammar cannot be used; the message is one line for the client."""


class Compiler:
    """Compiles for one vocabulary, on the calling thread alone and without a cache of its own.

    Inside JSON, consecutive white space is bounded, so that no reply is an endless run of newlines.
    """

    def __init__(self, info: TokenizerInfo) -> None:
        from xgrammar import GrammarCompiler  # takes a second: whoever needs no grammar need not wait for it

        self._compiler = GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """Raises `GrammarError`, and `MemoryError` where the process may not have as much as it takes."""
        try:
            return self._compile(spec)
        except (GrammarError, MemoryError):
            raise
        except Exception as error:  # what xgrammar raises depends on where it noticed
            text = str(error)
            if "bad_alloc" in text or "length_error" in text:
                raise MemoryError(text) from None
            raise GrammarError(clear(text)) from None

    def _compile(self, spec: GrammarSpec) -> CompiledGrammar:
        match spec.kind:
            case "json":
                return self._json(ANY_OBJECT, spec.any_whitespace)
            case "json_schema":
                return self._json(spec.text, spec.any_whitespace)
            case "regex":
                return self._compiler.compile_regex(spec.text)
            case "ebnf":
                return self._compiler.compile_grammar(spec.text)
            case "lark":
                return self._compiler.compile_lark(spec.text)
            case "structural_tag":
                bound = MAX_WHITESPACE if spec.any_whitespace else 1
                return self._compiler.compile_structural_tag(bound_whitespace(spec.text, bound))

    def _json(self, schema: str, any_whitespace: bool) -> CompiledGrammar:
        bound = MAX_WHITESPACE if any_whitespace else None
        return self._compiler.compile_json_schema(
            schema, any_whitespace=any_whitespace, max_whitespace_cnt=bound
        )


def bound_whitespace(structural_tag: str, bound: int) -> str:
    """The tag with `max_whitespace_cnt` in each `json_schema` format that left it open. Raises `GrammarError`."""
    try:
        tag = json.loads(structural_tag)
        bound_nodes(tag, bound)
        return json.dumps(tag)
    except RecursionError:
        raise GrammarError("the structural tag is nested too deeply") from None
    except ValueError as error:
        raise GrammarError(f"the structural tag is not valid JSON: {error}") from None


def bound_nodes(node: Any, bound: int) -> None:
    if isinstance(node, list):
        for element in node:
            bound_nodes(element, bound)
    elif isinstance(node, dict):
        if node.get("type") == "json_schema" and node.get("max_whitespace_cnt") is None:
            node["max_whitespace_cnt"] = bound
        for name, value in node.items():
            if name != "json_schema":  # the schema itself, where the same words mean something else
                bound_nodes(value, bound)


def clear(text: str) -> str:
    """xgrammar's error without its source files, failed checks and echoes of the input: one line."""
    for noise in (SOURCE_PLACE, FAILED_CHECK, QUOTED_INPUT):
        text = noise.sub("", text)
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if "type mismatch!" in line:
        line = "a field has a value of the wrong type"
    if len(line) > MAX_MESSAGE_CHARS:
        line = line[: MAX_MESSAGE_CHARS - 1] + "…"
    return line or "it cannot be compiled"
