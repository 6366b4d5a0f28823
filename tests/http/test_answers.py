"""Requests over a real socket: what is asked is what the engine is told, what it says is what the client reads."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from http_family import MODEL, Family, family

GREEDY = {"model": MODEL, "temperature": 0}
USER = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Family]:
    with family(generation={"temperature": 0.5, "top_k": 7, "eos_token_id": [2, 0]}, seed=1) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(served: Family) -> None:
    served.engine.script = None
    served.engine.cached_tokens = 0


@pytest.fixture(scope="module")
def sdk(served: Family) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)


def complete(served: Family, **options: object) -> dict:
    reply = served.client.post(
        "/v1/completions", json={**GREEDY, "prompt": "Hello", "max_tokens": 6, **options}
    )
    assert reply.status_code == 200, reply.text
    return reply.json()


def events(served: Family, path: str, **body: object) -> list[dict]:
    """The parsed events of a stream, which must end with [DONE]."""
    with served.client.stream("POST", path, json={**GREEDY, "stream": True, **body}) as reply:
        assert reply.status_code == 200, reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines[:-1]]


def last_sampling(served: Family):
    return served.engine.seen.submits[-1].sampling


# ---------------------------------------------------------------------------------------------------- the official SDK


def test_sdk_reads_a_whole_chat_reply(served: Family, sdk: openai.OpenAI) -> None:
    served.engine.script = served.ids("The answer is 42.")
    served.engine.cached_tokens = 16
    reply = sdk.chat.completions.create(model=MODEL, messages=USER, max_tokens=50)
    assert reply.id.startswith("chatcmpl-")
    assert reply.object == "chat.completion"
    assert reply.system_fingerprint.startswith("fp_")
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "The answer is 42."
    assert choice.finish_reason == "stop"
    assert choice.stop_reason is None
    output = len(served.engine.script) + 1  # the end token counts
    assert reply.usage.completion_tokens == output
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + output
    assert reply.usage.prompt_tokens_details.cached_tokens == 16


def test_sdk_reads_a_stream_in_the_documented_order(served: Family, sdk: openai.OpenAI) -> None:
    served.engine.script = served.ids("Grüße 😀🎉!")
    stream = sdk.chat.completions.create(
        model=MODEL, messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Grüße 😀🎉!"
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-2])
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].choices[0].delta.content is None
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(served.engine.script) + 1


def test_sdk_reads_completions_models_and_errors(served: Family, sdk: openai.OpenAI) -> None:
    reply = sdk.completions.create(model="alias", prompt="Hello", max_tokens=4, temperature=0)
    assert reply.model == "alias"
    assert reply.choices[0].text == served.text(served.ids("Hello"), 4)
    assert [model.id for model in sdk.models.list()] == [MODEL, "alias"]
    assert sdk.models.retrieve(MODEL).max_model_len == 256
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.completions.create(model="gpt-9", prompt="Hello")
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        sdk.completions.create(model=MODEL, prompt="Hello", temperature=-1)
    assert wrong.value.param == "temperature"


# ------------------------------------------------------------------------------------------------------------ prompts


def test_all_four_prompt_forms_say_the_same(served: Family) -> None:
    ids = served.ids("Hello")
    expected = served.text(ids, 6)
    for prompt in ("Hello", ["Hello"], ids, [ids], [ids, ids]):
        assert {choice["text"] for choice in complete(served, prompt=prompt)["choices"]} == {expected}


def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(served: Family) -> None:
    reply = complete(served, prompt=["Hello", "one two"], n=3, temperature=1, seed=5)
    assert [choice["index"] for choice in reply["choices"]] == list(range(6))
    submits = served.engine.seen.submits[-6:]
    texts = [
        served.text(served.ids(prompt), 6, submit.sampling.seed)
        for prompt, submit in zip(["Hello"] * 3 + ["one two"] * 3, submits, strict=True)
    ]
    assert [choice["text"] for choice in reply["choices"]] == texts
    assert len(set(texts)) > 4
    usage = reply["usage"]
    assert usage["prompt_tokens"] == len(served.ids("Hello")) + len(served.ids("one two"))
    assert usage["completion_tokens"] == 6 * 6


def test_streamed_choices_are_the_whole_ones(served: Family) -> None:
    options = {"prompt": ["Hello", "one two"], "n": 2, "temperature": 1, "seed": 9, "max_tokens": 7}
    whole = [choice["text"] for choice in complete(served, **options)["choices"]]
    texts = [""] * 4
    finished = []
    for event in events(served, "/v1/completions", **options):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
            if choice["finish_reason"]:
                finished.append((choice["index"], choice["finish_reason"]))
    assert texts == whole
    assert sorted(finished) == [(index, "length") for index in range(4)]


def test_long_prompts_are_tokenised_the_same_on_a_thread(served: Family) -> None:
    text = "Hello there " * 1000
    reply = served.client.post("/tokenize", json={"prompt": text}).json()
    assert reply["tokens"] == served.ids(text)
    assert reply["count"] == len(reply["tokens"])
    assert reply["max_model_len"] == 256
    assert served.client.post("/detokenize", json={"tokens": reply["tokens"]}).json() == {"prompt": text}


def test_tokenize_renders_messages_as_chat_does(served: Family) -> None:
    reply = served.client.post("/tokenize", json={"messages": USER, "return_token_strs": True}).json()
    complete_chat = served.client.post(
        "/v1/chat/completions", json={**GREEDY, "messages": USER, "max_tokens": 1}
    )
    assert complete_chat.json()["usage"]["prompt_tokens"] == reply["count"]
    sent = np.frombuffer(served.engine.seen.submits[-1].tokens, "<i4").tolist()
    assert sent == reply["tokens"]
    assert reply["token_strs"][0] == "<|im_start|>"


# ----------------------------------------------------------------------------------------------------------- sampling


def test_every_sampling_field_reaches_the_engine(served: Family) -> None:
    complete(
        served,
        temperature=0.7,
        top_p=0.9,
        top_k=11,
        min_p=0.05,
        seed=123,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.1,
        logit_bias={"5": 3, "6": -100},
        stop_token_ids=[9],
        min_tokens=2,
        priority=4,
        cache_salt="tenant",
    )
    submit = served.engine.seen.submits[-1]
    told = submit.sampling
    assert (told.temperature, told.top_p, told.top_k, told.min_p, told.seed) == (0.7, 0.9, 11, 0.05, 123)
    assert (told.presence_penalty, told.frequency_penalty, told.repetition_penalty) == (0.5, -0.5, 1.1)
    assert told.logit_bias == {5: 3.0, 6: -100.0}
    assert told.stop_token_ids == [0, 2, 9]
    assert (told.min_tokens, told.max_tokens) == (2, 6)
    assert (submit.priority, submit.cache_salt) == (4, "tenant")


def test_defaults_come_from_the_generation_config_and_requests_win(served: Family) -> None:
    served.client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 1})
    assert (last_sampling(served).temperature, last_sampling(served).top_k) == (0.5, 7)
    served.client.post(
        "/v1/completions", json={"prompt": "Hello", "max_tokens": 1, "temperature": 0, "top_k": -1}
    )
    assert (last_sampling(served).temperature, last_sampling(served).top_k) == (0.0, 0)


def test_max_tokens_defaults_to_what_the_context_holds(served: Family) -> None:
    complete(served, max_tokens=None)
    assert last_sampling(served).max_tokens == 256 - len(served.ids("Hello"))


def test_ignore_eos_goes_past_the_end_token(served: Family) -> None:
    served.engine.script = [*served.ids("one"), 2, *served.ids(" two")]
    assert complete(served)["choices"][0]["text"] == "one"
    going_on = complete(served, ignore_eos=True)["choices"][0]
    assert (going_on["text"], going_on["finish_reason"]) == ("one two", "length")
    shown = complete(served, ignore_eos=True, skip_special_tokens=False, max_tokens=3)["choices"][0]
    assert "<|im_end|>" in shown["text"]


def test_requests_without_a_seed_get_different_ones_and_choices_too(served: Family) -> None:
    for _ in range(2):
        complete(served, n=2, temperature=1)
    seeds = [submit.sampling.seed for submit in served.engine.seen.submits[-4:]]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_priority_comes_from_the_header_too(served: Family) -> None:
    served.client.post(
        "/v1/completions", json={**GREEDY, "prompt": "Hi", "max_tokens": 1}, headers={"X-Vllm-Priority": "-3"}
    )
    assert served.engine.seen.submits[-1].priority == -3


# -------------------------------------------------------------------------------------------------------------- stops


@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_a_stop_string_across_tokens_cuts_ends_and_aborts(served: Family, tokens_per_step: int) -> None:
    script = served.ids("one two three four five six seven")
    served.engine.script = script
    served.engine.tokens_per_step = tokens_per_step
    try:
        assert not any("ee f" in served.tokenizer.decode([token]) for token in script)
        reply = complete(served, stop=["xyz", "ee f"], max_tokens=100)
        (choice,) = reply["choices"]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
            "one two thr",
            "stop",
            "ee f",
        )
        used = next(n for n in range(1, 99) if "ee f" in served.tokenizer.decode(script[:n]))
        assert reply["usage"]["completion_tokens"] == used
        request_id = served.engine.seen.submits[-1].request_id
        served.engine.wait_for(lambda: request_id in served.engine.seen.aborted, "the abort")
        streamed = events(served, "/v1/completions", prompt="Hello", stop="ee f", max_tokens=100)
        assert "".join(event["choices"][0]["text"] for event in streamed) == "one two thr"
        kept = complete(served, stop="ee f", include_stop_str_in_output=True, max_tokens=100)
        assert kept["choices"][0]["text"] == "one two three f"
    finally:
        served.engine.tokens_per_step = 1


def test_text_that_only_began_like_a_stop_string_is_given_at_the_end(served: Family) -> None:
    served.engine.script = served.ids("one two th")
    streamed = events(served, "/v1/completions", prompt="Hello", stop=["three"], max_tokens=100)
    assert "".join(event["choices"][0]["text"] for event in streamed) == "one two th"


def test_stop_strings_wait_for_min_tokens(served: Family) -> None:
    served.engine.script = served.ids("one two three one two three")
    early = served.ids("one two three")
    reply = complete(served, stop=["one"], min_tokens=len(early), max_tokens=100)
    assert reply["choices"][0]["text"] == "one two three "


def test_a_named_stop_token_is_reported_and_hidden(served: Family) -> None:
    served.engine.script = served.ids("one two three")
    token = served.engine.script[1]
    before = served.tokenizer.decode(served.engine.script[:1])
    (choice,) = complete(served, stop_token_ids=[token], max_tokens=100)["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (before, "stop", token)
    (shown,) = complete(served, stop_token_ids=[token], include_stop_str_in_output=True, max_tokens=100)[
        "choices"
    ]
    assert shown["text"] == served.tokenizer.decode(served.engine.script[:2])


# ----------------------------------------------------------------------------------------------------------- logprobs


def test_chat_logprobs_name_tokens_bytes_and_alternatives(served: Family, sdk: openai.OpenAI) -> None:
    served.engine.script = served.ids("é!")
    reply = sdk.chat.completions.create(
        model=MODEL, messages=USER, logprobs=True, top_logprobs=2, max_tokens=len(served.engine.script)
    )
    content = reply.choices[0].logprobs.content
    assert bytes(byte for entry in content for byte in entry.bytes) == "é!".encode()
    for entry, token in zip(content, served.engine.script, strict=True):
        assert entry.logprob == -0.5
        assert [top.logprob for top in entry.top_logprobs] == [-0.5, -1.5]
        assert entry.top_logprobs[0].token == served.tokenizer.decode([token])


def test_streamed_chat_logprobs_cover_every_token(served: Family) -> None:
    chunks = events(
        served, "/v1/chat/completions", messages=USER, logprobs=True, stop="th", max_tokens=9, ignore_eos=True
    )
    entries = [
        entry
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["logprobs"]
        for entry in choice["logprobs"]["content"]
    ]
    assert len(entries) == 9
    assert all(entry["top_logprobs"] == [] for entry in entries)


def test_completion_logprobs_are_parallel_lists(served: Family) -> None:
    served.engine.script = served.ids("naïve 😀")
    logprobs = complete(served, logprobs=2, max_tokens=len(served.engine.script))["choices"][0]["logprobs"]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert len(logprobs[name]) == len(served.engine.script)
    assert all(len(top) in (2, 3) for top in logprobs["top_logprobs"])
    text = "naïve 😀"
    assert logprobs["text_offset"][0] == 0
    assert logprobs["text_offset"][-1] == text.index("😀")
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


def test_echo_repeats_the_prompt_with_and_without_logprobs(served: Family) -> None:
    ids = served.ids("one two")
    answer = served.text(ids, 3)
    plain = complete(served, prompt="one two", echo=True, max_tokens=3)["choices"][0]
    assert plain["text"] == "one two" + answer
    by_ids = complete(served, prompt=ids, echo=True, max_tokens=3)["choices"][0]
    assert by_ids["text"] == "one two" + answer
    told = complete(served, prompt="one two", echo=True, logprobs=1, max_tokens=3)["choices"][0]
    logprobs = told["logprobs"]
    assert told["text"] == "one two" + answer
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert len(logprobs["tokens"]) == len(ids) + 3
    assert logprobs["text_offset"][len(ids)] == len("one two")
    streamed = events(served, "/v1/completions", prompt="one two", echo=True, logprobs=1, max_tokens=3)
    assert "".join(event["choices"][0]["text"] for event in streamed) == "one two" + answer
    tokens = [
        token
        for event in streamed
        if event["choices"][0]["logprobs"]
        for token in event["choices"][0]["logprobs"]["tokens"]
    ]
    assert tokens == logprobs["tokens"]


@pytest.mark.parametrize("prompt", ["one two", [40]])
def test_echo_alone_generates_nothing(served: Family, prompt: object) -> None:
    reply = complete(served, prompt=prompt, echo=True, max_tokens=0, logprobs=0)
    text = prompt if isinstance(prompt, str) else served.tokenizer.decode(prompt)
    (choice,) = reply["choices"]
    assert choice["text"] == text
    assert choice["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["tokens"]) == reply["usage"]["prompt_tokens"]
    streamed = events(served, "/v1/completions", prompt=prompt, echo=True, max_tokens=0)
    assert "".join(event["choices"][0]["text"] for event in streamed) == text


# --------------------------------------------------------------------------------------------------------------- chat


def prompt_text(served: Family, **body: object) -> str:
    """What the model was given for these messages."""
    reply = served.client.post("/v1/chat/completions", json={**GREEDY, "max_tokens": 1, **body})
    assert reply.status_code == 200, reply.text
    tokens = np.frombuffer(served.engine.seen.submits[-1].tokens, "<i4").tolist()
    return served.tokenizer.decode(tokens, skip_special_tokens=False)


def test_messages_go_through_the_checkpoints_template(served: Family) -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    messages = [{"role": "developer", "content": "Be kind"}, {"role": "user", "content": parts}]
    assert prompt_text(served, messages=messages) == (
        "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHello\nthere<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt_text(served, messages=USER, add_generation_prompt=False).endswith("there<|im_end|>\n")
    assert prompt_text(served, messages=USER, chat_template_kwargs={"thinking": True}).endswith("<think>")
    begun = [*USER, {"role": "assistant", "content": "I am"}]
    assert prompt_text(served, messages=begun, continue_final_message=True).endswith("assistant\nI am")


TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


def test_the_choice_of_none_leaves_the_prompt_as_it_is(served: Family) -> None:
    prompts = {
        prompt_text(served, messages=USER, tools=TOOLS, tool_choice=choice) for choice in ("auto", "none")
    }
    (prompt,) = prompts
    assert "look_up" in prompt


def test_tools_that_must_not_be_called_are_left_out_if_the_server_is_told_so() -> None:
    with family(exclude_tools_when_tool_choice_none=True) as served:
        assert "look_up" in prompt_text(served, messages=USER, tools=TOOLS, tool_choice="auto")
        assert "look_up" not in prompt_text(served, messages=USER, tools=TOOLS, tool_choice="none")


def test_an_sdk_message_can_be_sent_back_as_it_is(served: Family, sdk: openai.OpenAI) -> None:
    reply = sdk.chat.completions.create(model=MODEL, messages=USER, max_tokens=3)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    history = [
        *USER,
        reply.choices[0].message,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ]
    again = sdk.chat.completions.create(model=MODEL, messages=history, max_tokens=3)
    assert again.usage.prompt_tokens > reply.usage.prompt_tokens


# ------------------------------------------------------------------------------------------------------ usage, headers


def test_usage_can_follow_every_chunk(served: Family) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(served, "/v1/chat/completions", messages=USER, max_tokens=4, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_fields_that_nobody_knows_change_nothing(served: Family) -> None:
    def answer(**more: object) -> str:
        reply = served.client.post(
            "/v1/completions", json={**GREEDY, "prompt": "Hi", "max_tokens": 4, **more}
        )
        assert reply.status_code == 200
        return reply.json()["choices"][0]["text"]

    assert answer(unheard_of={"a": [1]}) == answer()


def test_request_ids_go_in_and_come_out(served: Family) -> None:
    for given, expected in (("my-id.7", "my-id.7"), ("bad id\t{}", None), ("x" * 200, None)):
        reply = served.client.post(
            "/v1/completions",
            json={**GREEDY, "prompt": "Hi", "max_tokens": 1},
            headers={"X-Request-Id": given},
        )
        returned = reply.headers["x-request-id"]
        assert returned == expected or (expected is None and len(returned) == 32)
        assert reply.json()["id"] == f"cmpl-{returned}"
    assert "x-request-id" in served.client.get("/nowhere").headers


def test_probes_and_administration(served: Family) -> None:
    get = served.client.get
    for path in ("/health", "/ready", "/health_generate", "/v1/loads", "/load", "/metrics", "/v1/models"):
        assert get(path).status_code == 200, path
    assert get("/version").json() == {"version": "1.2.3"}
    assert get("/v1/models/nobody").status_code == 404
    for path in ("/flush_cache", "/reset_prefix_cache"):
        assert served.client.post(path).json() == {"success": True, "message": "3 pages dropped"}
    assert served.client.request("HEAD", "/health").status_code == 200


def test_finished_requests_are_logged_on_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="penstock"), family(log_requests=True) as served:
        body = {"prompt": "Hello", "max_tokens": 3, "n": 2}
        assert (
            served.client.post("/v1/completions", json=body, headers={"X-Request-Id": "r7"}).status_code
            == 200
        )
    (line,) = [line for line in caplog.messages if "r7" in line]
    assert "done: 2 choices" in line
    assert "6 output tokens" in line


def test_browsers_of_allowed_origins_may_call() -> None:
    with family(allowed_origins=["https://a.example"], api_keys=["k"]) as guarded:
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        preflight = httpx.options(f"{guarded.url}/v1/completions", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://a.example"
        refused = httpx.post(
            f"{guarded.url}/v1/completions", headers={"Origin": "https://a.example"}, json={}
        )
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
