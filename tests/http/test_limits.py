"""Every bound of a request is applied by every endpoint whose body has the field; a refusal names field and option."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from http_family import Family, family
from msgspec import Struct
from penstock.server.api.messages.protocol import CountTokensRequest, MessagesRequest
from penstock.server.api.pooling.protocol import (
    ClassifyRequest,
    EmbeddingRequest,
    ScoreRequest,
)
from penstock.server.api.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    StructuredOutputs,
    TokenizeRequest,
)
from penstock.server.api.responses.protocol import ResponsesRequest
from penstock.server.api.sglang.protocol import SGLangRequest
from penstock.server.api.shapes import SHAPES
from penstock.server.api.surface import bodies, fields_of
from penstock.server.api.tgi.protocol import Parameters, TGIRequest
from penstock.server.limits import LimitOptions
from requests_of_all import (
    ALL_TASKS,
    ANTHROPIC_TOOL,
    CHAT_TOOL,
    INSIDE,
    RESPONSES_TOOL,
    VALID,
    path_of,
    taking_bodies,
    with_field,
)

MOST = 2
LIMITS = LimitOptions(
    max_logprobs=MOST,
    max_n=MOST,
    max_prompts=MOST,
    max_messages=MOST,
    max_tools=MOST,
    max_stop_strings=MOST,
    max_stop_chars=4,
    max_stop_token_ids=MOST,
    max_logit_bias=MOST,
    max_allowed_token_ids=MOST,
    max_bad_words=MOST,
    max_bad_word_chars=4,
    max_repetition_pattern=MOST,
    max_template_variables=MOST,
    max_schema_bytes=100,
    max_schema_depth=4,
    max_schema_parts=20,
    max_choices=MOST,
    max_regex_length=8,
    max_grammar_bytes=64,
)
# About connections and templates: tests/http/test_connections.py, test_malformed.py and test_sandbox.py.
ELSEWHERE = {
    *("max_request_bytes", "max_header_bytes", "header_timeout", "body_timeout", "max_connections"),
    *("template_timeout", "max_template_bytes"),
}


class Bound(NamedTuple):
    """What the option just allows, and what it does not."""

    option: str
    allowed: Any
    too_much: Any
    beside: Mapping[str, Any] = MappingProxyType({})


def several(make: Any, option: str, **beside: Any) -> Bound:
    """Lists of `MOST` and one more."""
    return Bound(option, [make(i) for i in range(MOST)], [make(i) for i in range(MOST + 1)], beside)


def turns(count: int) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(count)]


def named(tool: dict[str, Any], index: int) -> dict[str, Any]:
    if "function" in tool:
        return {**tool, "function": {**tool["function"], "name": f"f{index}"}}
    return {**tool, "name": f"f{index}"}


STOP = several(lambda i: f"ab{i}", "max_stop_strings")
LONG_STOP = Bound("max_stop_chars", ["a" * 4], ["a" * 5])
TEXTS = several(lambda i: f"t{i}", "max_prompts")
BY_NAME: dict[str, list[Bound]] = {
    "n": [Bound("max_n", MOST, MOST + 1)],
    "prompt": [TEXTS, several(lambda i: [5 + i], "max_prompts")],
    "messages": [Bound("max_messages", turns(1), turns(3))],
    "stop": [STOP, LONG_STOP],
    "stop_sequences": [STOP, LONG_STOP],
    "stop_token_ids": [several(lambda i: 5 + i, "max_stop_token_ids")],
    "logit_bias": [Bound("max_logit_bias", {"5": 1, "6": 1}, {"5": 1, "6": 1, "7": 1})],
    "allowed_token_ids": [several(lambda i: 5 + i, "max_allowed_token_ids")],
    "bad_words": [
        several(lambda i: f"w{i}", "max_bad_words"),
        Bound("max_bad_word_chars", ["a" * 4], ["a" * 5]),
    ],
    "repetition_detection": [
        Bound(
            "max_repetition_pattern",
            {"max_pattern_size": MOST, "min_count": 2},
            {"max_pattern_size": MOST + 1, "min_count": 2},
        )
    ],
    "chat_template_kwargs": [
        Bound("max_template_variables", {"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1}),
    ],
    "prompt_logprobs": [Bound("max_logprobs", MOST, MOST + 1)],
    "top_n_tokens": [Bound("max_logprobs", MOST, MOST + 1, {"details": True})],
    "top_logprobs_num": [Bound("max_logprobs", MOST, MOST + 1, {"return_logprob": True})],
    "guided_choice": [several(lambda i: f"c{i}", "max_choices")],
    "choice": [several(lambda i: f"c{i}", "max_choices")],
    "documents": [TEXTS],
    "text_1": [Bound("max_prompts", ["a"] * MOST, ["a"] * (MOST + 1), {"text_2": ["b"] * MOST})],
    "text_2": [TEXTS],
    "queries": [
        Bound("max_prompts", ["a"] * MOST, ["a"] * (MOST + 1), {"text_1": None, "text_2": ["b"] * MOST})
    ],
    "input_ids": [several(lambda i: [5 + i], "max_prompts", text=None)],
    "text": [TEXTS],
    **{name: [Bound("max_regex_length", "a" * 8, "a" * 9)] for name in ("regex", "guided_regex")},
    **{
        name: [Bound("max_grammar_bytes", 'root ::= "a"', f'root ::= "{"a" * 60}"')]
        for name in ("ebnf", "guided_grammar", "grammar")
    },
}
CONST = {"type": "structural_tag", "format": {"type": "const_string", "value": "a"}}


def schemas(wrap: Any = lambda schema: schema) -> list[Bound]:
    """The bounds of a schema."""
    small = {"type": "object"}
    deep: Any = {"type": "string"}
    for _ in range(4):
        deep = {"type": "array", "items": deep}
    # many small parts within the bytes: an object of 21
    many = {"enum": list(range(21))}
    long = {"type": "string", "description": "x" * 100}
    return [
        Bound("max_schema_bytes", wrap(small), wrap(long)),
        Bound("max_schema_depth", wrap(small), wrap(deep)),
        Bound("max_schema_parts", wrap(small), wrap(many)),
    ]


def response_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def tools(tool: dict[str, Any], place: str) -> list[Bound]:
    def wrap(schema: Any) -> Any:
        if "function" in tool:
            return [{**tool, "function": {"name": "f", "parameters": schema}}]
        return [{**tool, place: schema}]

    return [several(lambda i: named(tool, i), "max_tools"), *schemas(wrap)]


BY_NAME |= {name: schemas() for name in ("guided_json", "json_schema", "json")}
BY_NAME["response_format"] = [
    *schemas(response_format),
    Bound("max_choices", response_format({"enum": [1, 2]}), response_format({"enum": [1, 2, 3]})),
]
BY_NAME["structural_tag"] = [
    Bound("max_schema_bytes", CONST, {"format": {"type": "const_string", "value": "a" * 100}})
]
OWN: dict[tuple[type[Struct], str], list[Bound]] = {
    (CompletionRequest, "logprobs"): [Bound("max_logprobs", MOST, MOST + 1)],
    (ChatRequest, "top_logprobs"): [Bound("max_logprobs", MOST, MOST + 1, {"logprobs": True})],
    (ResponsesRequest, "top_logprobs"): [Bound("max_logprobs", MOST, MOST + 1)],
    (ChatRequest, "documents"): [several(lambda i: {"text": str(i)}, "max_messages")],
    (ChatRequest, "tools"): tools(CHAT_TOOL, "parameters"),
    (TokenizeRequest, "tools"): [
        bound._replace(beside={"prompt": None, "messages": turns(1)})
        for bound in tools(CHAT_TOOL, "parameters")
    ],
    (TokenizeRequest, "messages"): [Bound("max_messages", turns(1), turns(3), {"prompt": None})],
    (TokenizeRequest, "prompt"): [],
    (ResponsesRequest, "tools"): tools(RESPONSES_TOOL, "parameters"),
    (MessagesRequest, "tools"): tools(ANTHROPIC_TOOL, "input_schema"),
    (CountTokensRequest, "tools"): tools(ANTHROPIC_TOOL, "input_schema"),
    (ResponsesRequest, "input"): [Bound("max_messages", turns(1), turns(3))],
    (ResponsesRequest, "text"): [
        bound._replace(allowed={"format": bound.allowed}, too_much={"format": bound.too_much})
        for bound in schemas(lambda schema: {"type": "json_schema", "name": "x", "schema": schema})
    ],
    **{
        (struct, name): [
            bound._replace(allowed=wrap(bound.allowed), too_much=wrap(bound.too_much))
            for bound in schemas(lambda schema: {"type": "json_schema", "schema": schema})
        ]
        for struct in (MessagesRequest, CountTokensRequest)
        for name, wrap in (
            ("output_format", lambda form: form),
            ("output_config", lambda form: {"format": form}),
        )
    },
    (EmbeddingRequest, "input"): [TEXTS, several(lambda i: [5 + i], "max_prompts")],
    (ClassifyRequest, "input"): [TEXTS, several(lambda i: [5 + i], "max_prompts")],
    (ScoreRequest, "documents"): [TEXTS._replace(beside={"text_2": None})],
    (Parameters, "grammar"): [
        *schemas(lambda schema: {"type": "json", "value": schema}),
        Bound(
            "max_regex_length",
            {"type": "regex", "value": "a" * 8},
            {"type": "regex", "value": "a" * 9},
        ),
    ],
    (StructuredOutputs, "grammar"): BY_NAME["grammar"],
}
HOLDERS = [*bodies(), *INSIDE]
# Fields of these names that hold one text, or what the rows of another field are about.
UNBOUNDED = {(TGIRequest, "inputs"), (ResponsesRequest, "prompt"), (StructuredOutputs, "json_object")}


def rows() -> Iterator[Any]:
    for struct in HOLDERS:
        for field in fields_of(struct):
            if field.status == "refused" or (struct, field.name) in UNBOUNDED:
                continue
            for bound in OWN.get((struct, field.name), BY_NAME.get(field.name, [])):
                yield pytest.param(
                    struct, field.name, bound, id=f"{struct.__name__}-{field.name}-{bound.option}"
                )


@pytest.fixture(scope="module")
def served() -> Iterator[Family]:
    with family(engine=ALL_TASKS, limits=LIMITS) as running:
        yield running


def test_every_limit_has_a_row() -> None:
    tested = {row.values[2].option for row in rows()}
    assert tested | ELSEWHERE == set(LimitOptions.__struct_fields__)
    assert not tested & ELSEWHERE


@pytest.mark.parametrize(("struct", "name", "bound"), [*rows()])
def test_a_bound_is_applied_wherever_the_field_is(
    served: Family, struct: type[Struct], name: str, bound: Bound
) -> None:
    for value, fits in ((bound.allowed, True), (bound.too_much, False)):
        whole, body = with_field(struct, name, value)
        if struct is StructuredOutputs:
            body["structured_outputs"] = {name: value}  # one constraint at a time
        target = body["parameters"] if struct is Parameters else body
        target.update(bound.beside)
        paths = [operation.path for operation, taken in taking_bodies() if taken is whole]
        for path in paths:
            reply = served.client.post(path, json=body)
            if fits:
                assert reply.status_code == 200, (path, reply.text)
                continue
            assert reply.status_code in (400, 422), (path, reply.text)
            error = reply.json()["error"]
            message = error if isinstance(error, str) else error["message"]
            assert f"--{bound.option.replace('_', '-')}" in message
            assert name in message.partition(":")[0]


# ------------------------------------------------------------------------------------------------- amplification

LONG = "x" * 1_000_000
HUGE: dict[str, Any] = {
    "a text": LONG,
    "a key": {LONG: 1},
    "a list": [LONG],
    "a key inside": [{"type": "text", LONG: LONG, "role": LONG, "content": [{"type": LONG}]}],
    "deep": {"a": [{"b": LONG}]},
}


INHERITED = set(GenerationRequest.__struct_fields__)


def values(struct: type[Struct], name: str) -> list[Any]:
    """All of them where the form of a value is checked, two elsewhere; what three bodies share only once."""
    if (struct, name) in SHAPES:
        return list(HUGE.values())
    shared = struct in (ChatRequest, ResponsesRequest) and name in INHERITED
    return [] if shared else [HUGE["a text"], HUGE["a key"]]


@pytest.mark.parametrize("struct", HOLDERS, ids=lambda struct: struct.__name__)
def test_a_huge_bad_value_is_not_sent_back(served: Family, struct: type[Struct]) -> None:
    for field in fields_of(struct):
        for value in values(struct, field.name):
            whole, body = with_field(struct, field.name, value)
            reply = served.client.post(path_of(whole), content=json.dumps(body))
            if reply.status_code != 200:  # a note of the client's own may be long
                assert reply.status_code in (400, 404, 422), (field.name, reply.text[:500])
                assert len(reply.content) < 1200, field.name
                assert "\\n" not in reply.text


def test_huge_names_paths_and_headers_are_not_sent_back(served: Family) -> None:
    for method, path in (("GET", "/v1/models/"), ("GET", "/v1/responses/"), ("POST", "/"), ("PUT", "/")):
        reply = served.client.request(method, path + "y" * 30_000)
        assert reply.status_code in (400, 404, 405)
        assert len(reply.content) < 1200
    reply = served.client.get("/v1/responses/x/input_items", params={"order": "y" * 30_000})
    assert reply.status_code in (400, 404)
    assert len(reply.content) < 1200


def test_a_list_of_prompts_is_counted_before_it_is_tokenized(served: Family) -> None:
    for struct, field in ((CompletionRequest, "prompt"), (SGLangRequest, "text")):
        body = {**VALID[struct], field: ["word " * 50] * 20_000}
        reply = served.client.post(path_of(struct), json=body)
        assert reply.status_code == 400
        assert "--max-prompts" in reply.text


def test_prompts_times_choices_are_bounded() -> None:
    with family(engine=ALL_TASKS) as running:
        sampling = {"n": 100, "max_new_tokens": 1}
        reply = running.client.post("/generate", json={"text": ["a"] * 100, "sampling_params": sampling})
        assert reply.json()["error"]["param"] == "sampling_params.n"
