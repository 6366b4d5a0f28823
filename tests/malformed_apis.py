"""Malformed requests to the other APIs: Responses, Messages, embeddings, scores, TGI's and SGLang's, rendering.

They are refused by any model, what it can do is not yet asked; `malformed.py` says for which server they are.
"""

from __future__ import annotations

from typing import Any

from malformed import LIMIT, MESSAGES, TOOL, Case

RESPONSES = "/v1/responses"
MESSAGES_API = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
GENERATE = "/generate"
BLOCK = {"type": "text", "text": "hi"}
FUNCTION = {"type": "function", "name": "f"}


def response(param: str | None, **fields: Any) -> Case:
    return Case(RESPONSES, {"input": "hi", **fields}, param)


def anthropic(param: str, **fields: Any) -> Case:
    return Case(MESSAGES_API, {"model": "tiny", "messages": MESSAGES, "max_tokens": 5, **fields}, param)


def block(param: str, role: str, **fields: Any) -> Case:
    return anthropic(f"messages[0].content[0]{param}", messages=[{"role": role, "content": [fields]}])


def tgi(param: str, **parameters: Any) -> Case:
    return Case(GENERATE, {"inputs": "hi", "parameters": parameters}, f"parameters.{param}", 422)


def sglang(param: str, **fields: Any) -> Case:
    return Case(GENERATE, {"text": "hi", **fields}, param)


def sampled(param: str, **fields: Any) -> Case:
    return sglang(f"sampling_params.{param}", sampling_params=fields)


OF_RESPONSES = [
    Case(RESPONSES, b"{", None),
    Case(RESPONSES, b"[]", None),
    Case(RESPONSES, {}, "input"),
    response("input", input=5),
    response("input", input=[]),
    response("input[0].type", input=[{}]),
    response("input[0].type", input=[{"type": "image"}]),
    response("input[0].role", input=[{"role": "tool", "content": "x"}]),
    response("input[0].content[0].type", input=[{"role": "user", "content": [{"type": "input_image"}]}]),
    response("input[0].content[0].text", input=[{"role": "user", "content": [{"type": "input_text"}]}]),
    response(
        "input[0].call_id", input=[{"type": "function_call_output", "call_id": "nobody", "output": "x"}]
    ),
    response(
        "input[0].arguments",
        input=[{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[1]"}],
    ),
    response("input[0].encrypted_content", input=[{"type": "reasoning", "encrypted_content": 5}]),
    response("tools[0].type", tools=[{"type": "web_search"}]),
    response("tools[0].name", tools=[{"type": "function"}]),
    response("tools[1].name", tools=[FUNCTION, FUNCTION]),
    response("tool_choice.type", tools=[FUNCTION], tool_choice={"type": "mcp"}),
    response(
        "tool_choice.tools[0].type",
        tools=[FUNCTION],
        tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [{"type": "x"}]},
    ),
    response("text.format.schema", text={"format": {"type": "json_schema", "name": "x"}}),
    response("text.format.type", text={"format": {"type": "xml"}}),
    response("text.verbosity", text={"verbosity": "endless"}),
    response("reasoning.effort", reasoning={"effort": "endless"}),
    response("include[0]", include=["everything"]),
    response("conversation", conversation="conv_1"),
    response("prompt", prompt={"id": "pmpt_1"}),
    response("n", n=2),
    response("top_logprobs", top_logprobs=21),
    response("max_output_tokens", max_output_tokens=0),
    response("max_output_tokens", max_output_tokens=300),
    response("truncation", truncation="maybe"),
    response("text.verbosity", text={"verbosity": {}}),
    Case(RESPONSES, {"input": "hi", "previous_response_id": "resp_0"}, "previous_response_id", 404),
    Case(RESPONSES, {"input": "hi", "model": "nobody"}, "model", 404),
    Case(f"{RESPONSES}/input_tokens", {"input": []}, "input"),
    Case(f"{RESPONSES}/resp_0/cancel", {}, None, 404),
]
OF_MESSAGES = [
    Case(MESSAGES_API, b"{", None),
    Case(MESSAGES_API, {"model": "tiny", "messages": MESSAGES}, "max_tokens"),
    anthropic("messages", messages=[]),
    anthropic("messages[0].role", messages=[{"role": "tool", "content": "x"}]),
    anthropic("messages[0].content", messages=[{"role": "user"}]),
    anthropic("messages", messages=[{"role": "user", "content": "word " * 300}])._replace(param=None),
    block(".type", "user", type="image", source={"type": "url", "url": "file:///etc/passwd"}),
    block(".type", "user", type="document"),
    block(".type", "assistant", type="tool_result", tool_use_id="x"),
    block(".text", "user", type="text"),
    block(".tool_use_id", "user", type="tool_result", tool_use_id="nobody"),
    block(".input", "assistant", type="tool_use", id="t", name="f", input="{}"),
    anthropic("system[0].type", system=[{"type": "image"}]),
    anthropic("max_tokens", max_tokens=-1),
    anthropic("temperature", temperature=-1),
    anthropic("top_k", top_k=-1),
    anthropic("stop_sequences", stop_sequences=["x"] * 33),
    anthropic("stop_sequences[0]", stop_sequences=["x" * 257]),
    anthropic("tools[0].type", tools=[{"type": "bash_20250124", "name": "bash"}]),
    anthropic("tools[0].input_schema", tools=[{"name": "f"}]),
    anthropic("tool_choice", tool_choice={"type": "any"}),
    anthropic("tool_choice.name", tools=[{"name": "f", "input_schema": {}}], tool_choice={"type": "tool"}),
    anthropic("thinking.budget_tokens", thinking={"type": "enabled"}),
    anthropic("max_tokens", thinking={"type": "enabled", "budget_tokens": 5}),
    anthropic("container", container="c"),
    anthropic("mcp_servers", mcp_servers=[{"url": "http://127.0.0.1"}]),
    anthropic("cache_salt", cache_salt="x" * 129),
    anthropic("chat_template_kwargs", chat_template_kwargs={"messages": "x"}),
    anthropic("model", model="nobody")._replace(status=404),
    Case(COUNT, {"model": "tiny"}, "messages"),
    Case(
        COUNT,
        {"model": "tiny", "messages": [{"role": "user", "content": [{}]}]},
        "messages[0].content[0].type",
    ),
]
OF_POOLING = [
    Case("/v1/embeddings", {}, "input"),
    Case("/v1/embeddings", {"input": "hi", "dimensions": 0}, "dimensions"),
    Case("/v1/embeddings", {"input": "hi", "encoding_format": "pickle"}, "encoding_format"),
    Case("/v1/embeddings", {"input": "hi", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    Case("/v1/embeddings", {"input": "hi", "cache_salt": "a/b"}, "cache_salt"),
    Case("/v1/embeddings", {"input": "hi", "model": "nobody"}, "model", 404),
    Case("/v1/rerank", {"query": "hi"}, "documents"),
    Case("/rerank", {"query": ["hi"], "documents": []}, "query"),
    Case("/v2/rerank", {"query": "hi", "documents": [5]}, "documents[0]"),
    Case("/v2/rerank", {"query": "hi", "documents": [{"title": "x"}]}, "documents[0].text"),
    Case("/v1/rerank", {"query": "hi", "documents": ["a"], "top_n": -1}, "top_n"),
    Case("/v1/score", {"text_1": 5, "text_2": "a"}, "text_1"),
    Case("/score", {"text_1": "a", "text_2": [5]}, "text_2[0]"),
    Case("/classify", {}, "input"),
    Case("/v1/classify", {"input": "a", "use_activation": "yes"}, "use_activation"),
]
OF_TGI = [
    Case(GENERATE, b"{", None, 422),
    Case(GENERATE, {}, "inputs", 422),
    Case(GENERATE, {"inputs": ""}, "inputs", 422),
    Case(GENERATE, {"inputs": ["a"]}, "inputs", 422),
    Case("/", {"inputs": 5}, "inputs", 422),
    Case("/generate_stream", {"inputs": "hi", "parameters": "x"}, "parameters", 422),
    Case("/generate_stream", {"inputs": "word " * 300}, "inputs", 422),
    tgi("max_new_tokens", max_new_tokens=0),
    tgi("max_new_tokens", max_new_tokens=300),
    tgi("temperature", temperature=0),
    tgi("top_n_tokens", top_n_tokens=21, details=True),
    tgi("stop", stop=["x"] * 33),
    tgi("stop_sequences[0]", stop_sequences=["x" * 257]),
    tgi("watermark", watermark=True),
    tgi("best_of", best_of=2),
    tgi("typical_p", typical_p=0.5),
    tgi("adapter_id", adapter_id="../x"),
    tgi("grammar.type", grammar={"type": "python", "value": "x"}),
    tgi("grammar.value", grammar={"type": "regex", "value": "("}),
    tgi("seed", seed=-1),
]
OF_SGLANG = [
    sglang("text", text=""),
    sglang("text", text=[]),
    sglang("text", text=None),
    sglang("text[0]", text=[5]),
    sglang("text", input_ids=[5]),
    sglang("input_ids", text=None, input_ids=[99_999]),
    sglang("input_ids[0]", text=None, input_ids=[-1]),
    sglang("input_ids[1]", text=None, input_ids=[[5], 6]),
    sglang("text", text=["hi"] * 3000),
    sampled("n", n=129),
    sampled("max_new_tokens", max_new_tokens=300),
    sampled("stop[0]", stop=["x" * 257]),
    sampled("temperature", temperature=-1),
    sampled("sampling_seed", sampling_seed=2**63),
    sampled("custom_params", custom_params={"a": 1}),
    sglang("sampling_params", sampling_params=[{}, {}]),
    sglang("sampling_params.n", text=["hi"] * 100, sampling_params={"n": 100}),
    sglang("top_logprobs_num", top_logprobs_num=2),
    sglang("top_logprobs_num", return_logprob=True, top_logprobs_num=21),
    sglang("logprob_start_len", logprob_start_len=0),
    sglang("custom_logit_processor", custom_logit_processor="gASV"),
    sglang("image_data", image_data="http://127.0.0.1/x.png"),
    sglang("lora_path", lora_path="/etc"),
]
OF_RENDERING = [
    Case("/v1/chat/completions/render", {"messages": []}, "messages"),
    Case("/v1/chat/completions/render", {"messages": MESSAGES, "chat_template": "{{ 7 }}"}, "chat_template"),
    Case("/v1/completions/render", {"prompt": []}, "prompt"),
    Case("/v1/completions/render", {"prompt": ["hi"] * 3000}, "prompt"),
    Case("/apply-template", {"messages": "x"}, "messages"),
    Case("/apply-template", {"messages": MESSAGES, "tools": [TOOL, TOOL]}, "tools[1].function.name"),
    Case("/tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"a": []}}, "chat_template_kwargs[...]"),
    Case("/tokenize", {"messages": MESSAGES, "tools": [{"type": "x"}]}, "tools[0].type"),
    Case("/detokenize", {"tokens": [2**31]}, "tokens[0]"),
    Case("/openapi.json", {}, None, 405),
    Case(RESPONSES, {"input": "x" * LIMIT}, None, 413),
    Case(MESSAGES_API, b"[" * (LIMIT + 1), None, 413),
    Case(GENERATE, b"[" * (LIMIT + 1), None, 413),
    Case("/v1/embeddings", {"input": "x" * LIMIT}, None, 413),
]
API_CASES = [*OF_RESPONSES, *OF_MESSAGES, *OF_POOLING, *OF_TGI, *OF_SGLANG, *OF_RENDERING]
