"""Languages that constrained output may have to be in, each with a check of a whole sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import jsonschema
from penstock.scheduler.messages import GrammarSpec

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Zäé中 ]{2,6}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "more"],
    "additionalProperties": False,
}
DATE = r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]"
WORDS = r"[a-z]{3,8}( [a-z]{3,8}){2,4}\."


def valid_json(text: str) -> None:
    jsonschema.validate(json.loads(text), SCHEMA)


def matches(pattern: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        assert re.fullmatch(pattern, text), text

    return check


LANGUAGES: dict[str, tuple[GrammarSpec, Callable[[str], None]]] = {
    "schema": (GrammarSpec("json_schema", json.dumps(SCHEMA)), valid_json),
    "compact schema": (GrammarSpec("json_schema", json.dumps(SCHEMA), any_whitespace=False), valid_json),
    "regex": (GrammarSpec("regex", DATE), matches(DATE)),
    "words": (GrammarSpec("regex", WORDS), matches(WORDS)),
    "grammar": (GrammarSpec("ebnf", 'root ::= "(" root ")" | "x"{2,9}'), matches(r"\(*x{2,9}\)*")),
    "tag": (
        GrammarSpec(
            "structural_tag",
            json.dumps(
                {
                    "type": "structural_tag",
                    "format": {
                        "type": "tag",
                        "begin": "<think>",
                        "content": {"type": "regex", "pattern": "[a-z]{1,20}"},
                        "end": "</think>",
                    },
                }
            ),
        ),
        matches("<think>[a-z]{1,20}</think>"),
    ),
    "budget": (
        GrammarSpec(
            "structural_tag",
            json.dumps(
                {
                    "type": "structural_tag",
                    "format": {
                        "type": "sequence",
                        "elements": [
                            {"type": "any_text", "excludes": ["</think>"], "max_tokens": 6},
                            {"type": "const_string", "value": "</think>"},
                            {"type": "regex", "pattern": "[a-z]{4,8}"},
                        ],
                    },
                }
            ),
        ),
        matches("(?s).*</think>[a-z]{4,8}"),
    ),
}
