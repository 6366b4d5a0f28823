"""Texts that a grammar allows, found by walking it at random: a model that has no wish to comply."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import jsonschema
import xgrammar
from penstock.server.limits import LimitOptions
from penstock.server.structured.schema import check_schema

LIMITS = LimitOptions()
WORDS = [
    '{"',
    '":',
    '",',
    '"}',
    '": ',
    ', "',
    "true",
    "null",
    "12",
    "\\n",
    '\\"',
    "\n\n",
    "    ",
    "2024-",
    "-02-",
    "T1",
    "ab",
]
VOCABULARY = [chr(code) for code in range(32, 127)] + ["\n", "\t", "é", "中", "😀", "\x7f", *WORDS]
END = len(VOCABULARY)
CLOSERS = [
    index for index, text in enumerate(VOCABULARY) if text in ('"', "}", "]", ",", ":", '"}', '":', '",')
]
MAX_TOKENS = 400


@cache
def compiler() -> xgrammar.GrammarCompiler:
    info = xgrammar.TokenizerInfo(
        [*VOCABULARY, "</s>"], vocab_type=xgrammar.VocabType.RAW, vocab_size=END + 1, stop_token_ids=[END]
    )
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def compile_schema(schema: dict[str, Any], *, strict: bool = False) -> xgrammar.CompiledGrammar:
    return compiler().compile_json_schema(json.dumps(schema), strict_mode=strict, max_whitespace_cnt=2)


def rewritten(schema: Any) -> dict[str, Any]:
    return check_schema(schema, "schema", LIMITS)


def accepts(grammar: xgrammar.CompiledGrammar, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar)
    return bool(matcher.accept_string(text) and matcher.accept_token(END))


def walk(grammar: xgrammar.CompiledGrammar, rng: random.Random, max_tokens: int = MAX_TOKENS) -> str | None:
    """Random allowed tokens until the grammar stops; None if it did not within `max_tokens`.

    Tokens are as likely as each other in the first half; then those that close something are preferred.
    """
    matcher = xgrammar.GrammarMatcher(grammar)
    mask = xgrammar.allocate_token_bitmask(1, END + 1)
    texts: list[str] = []
    for step in range(max_tokens):
        matcher.fill_next_token_bitmask(mask)
        bits = sum((int(word) & 0xFFFFFFFF) << (32 * index) for index, word in enumerate(mask[0].tolist()))
        allowed = [token for token in range(END + 1) if bits >> token & 1]
        assert allowed, f"the grammar is stuck after {''.join(texts)!r}"
        preferred = [token for token in allowed if token == END or token in CLOSERS]
        hurry = step > max_tokens / 8 or rng.random() < 0.3
        token = rng.choice(preferred if preferred and hurry and rng.random() < 0.8 else allowed)
        assert matcher.accept_token(token)
        if token == END:
            return "".join(texts)
        texts.append(VOCABULARY[token])
    return None


def problem(schema: Any, text: str) -> str | None:
    """Why `text` is no JSON that the schema allows; None if it is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"{text!r} does not parse: {error}"
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    for error in validator.iter_errors(value):
        return f"{text!r} does not validate: {error.message}"
    return None
