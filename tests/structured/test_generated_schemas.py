"""Whatever schema is accepted, a text that its grammar allows to the end parses and validates: hundreds, by random walk."""

from __future__ import annotations

import random
from typing import Any

import pytest
from grammar_walk import compile_schema, problem, rewritten, walk
from penstock.server.structured.errors import ConstraintError
from schema_samples import Samples

CHUNK = 60
CHUNKS = 12


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_finished_walk_validates(chunk: int) -> None:
    accepted = finished = 0
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        schema = Samples(seed).document()
        try:
            compiled = compile_schema(rewritten(schema), strict=seed % 2 == 0)
        except ConstraintError:
            continue
        accepted += 1
        rng = random.Random(seed)
        for text in (walk(compiled, rng) for _ in range(3)):
            if text is not None:
                finished += 1
                assert (reason := problem(schema, text)) is None, f"seed {seed}: {reason}"
    assert accepted > CHUNK // 2
    assert finished > 2.5 * accepted


RECURSIVE: list[dict[str, Any]] = [
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}},
    {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["value", "next"],
    },
    {
        "$ref": "#/definitions/both%20~1~0",
        "definitions": {
            "both /~": {
                "allOf": [
                    {"type": "object", "properties": {"in": {"$ref": "#/definitions/both%20~1~0"}}},
                    {"properties": {"n": {"type": "null"}}, "required": ["n"]},
                ]
            }
        },
    },
]


@pytest.mark.parametrize("schema", RECURSIVE, ids=range(len(RECURSIVE)))
def test_recursive_schemas_end_and_validate(schema: dict[str, Any]) -> None:
    compiled = compile_schema(rewritten(schema))
    texts = [walk(compiled, random.Random(seed)) for seed in range(30)]
    ended = [text for text in texts if text is not None]
    assert len(ended) >= 20
    assert len(set(ended)) > 3
    assert not [reason for text in ended if (reason := problem(schema, text))]
