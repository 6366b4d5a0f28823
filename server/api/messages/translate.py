"""A request of Anthropic's API as a chat request."""

from __future__ import annotations

from typing import Any

from ..body import convert
from ..errors import bad_request, shown
from ..protocol import ChatRequest
from .conversation import chat_messages
from .protocol import ClientTool, CountTokensRequest, MessagesRequest, OutputFormat, Thinking

# What the chat request calls a field, and what Anthropic does.
FIELD_NAMES = {
    r"tools(\[\d+\])\.function\.parameters": r"tools\1.input_schema",
    r"tools(\[\d+\])\.function": r"tools\1",
    r"response_format\.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "thinking_token_budget": "thinking.budget_tokens",
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
}
FOREIGN = ("container", "mcp_servers")  # what needs Anthropic's servers
THINKING_VARIABLES = ("enable_thinking", "thinking")  # what chat templates ask for


def field_names(request: CountTokensRequest) -> dict[str, str]:
    """What the client calls the fields of the chat request; see `fields_named`."""
    if request.output_format is None:
        return FIELD_NAMES
    older = {name: "output_format" for name in FIELD_NAMES if name.startswith("response_format")}
    return {**FIELD_NAMES, **older}


def chat_request(request: CountTokensRequest) -> ChatRequest:
    """Raises a 400 for what cannot be translated."""
    refuse_foreign(request)
    check_thinking(request)
    chat = ChatRequest(model=request.model, messages=chat_messages(request), cache_salt=request.cache_salt)
    add_tools(chat, request)
    add_thinking(chat, request)
    add_output_config(chat, request)
    last = chat.messages[-1]
    if last["role"] == "assistant":
        if last.get("tool_calls"):
            raise bad_request("messages", "ends with tool calls: their results must follow")
        chat.continue_final_message = True
        chat.add_generation_prompt = False
    if isinstance(request, MessagesRequest):
        add_sampling(chat, request)
    return chat


def refuse_foreign(request: CountTokensRequest) -> None:
    """What only Anthropic's own servers can do."""
    for name in FOREIGN:
        value = getattr(request, name)
        if value:
            raise bad_request(name, f"{shown(value)} needs Anthropic's servers: leave it out")


def check_thinking(request: CountTokensRequest) -> None:
    thinking = request.thinking
    if thinking is None:
        return
    if thinking.type == "enabled" and thinking.budget_tokens is None:
        raise bad_request("thinking.budget_tokens", 'is required with type "enabled"')
    budget = thinking.budget_tokens
    if isinstance(request, MessagesRequest) and budget is not None and 0 < request.max_tokens <= budget:
        raise bad_request(
            "max_tokens", f"{request.max_tokens} must be greater than thinking.budget_tokens, {budget}"
        )


def add_tools(chat: ChatRequest, request: CountTokensRequest) -> None:
    if not request.tools:
        if request.tool_choice is not None and request.tool_choice.type in ("any", "tool"):
            raise bad_request("tool_choice", "is only allowed with tools")
        return
    chat.tools = [chat_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools)]
    choice = request.tool_choice
    if choice is None:
        return
    if choice.disable_parallel_tool_use is not None:
        chat.parallel_tool_calls = not choice.disable_parallel_tool_use
    match choice.type:
        case "auto" | "none":
            chat.tool_choice = choice.type
        case "any":
            chat.tool_choice = "required"
        case "tool":
            if choice.name is None:
                raise bad_request("tool_choice.name", 'is required with type "tool"')
            chat.tool_choice = {"type": "function", "function": {"name": choice.name}}


def chat_tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise bad_request(
            f"{path}.type",
            f"{shown(kind)} is a tool that Anthropic defines or runs: this server takes tools of the client's own, "
            "with a name and an input_schema",
        )
    checked = convert(tool, ClientTool, path)
    function: dict[str, Any] = {"name": checked.name}
    if checked.description is not None:
        function["description"] = checked.description
    function["parameters"] = checked.input_schema
    if checked.strict is not None:
        function["strict"] = checked.strict
    return {"type": "function", "function": function}


def add_thinking(chat: ChatRequest, request: CountTokensRequest) -> None:
    """The template is told whether to think; without a word the model does as it always does."""
    variables = dict(request.chat_template_kwargs or {})
    thinking: Thinking | None = request.thinking
    if thinking is not None:
        for name in THINKING_VARIABLES:
            variables.setdefault(name, thinking.type != "disabled")
        if thinking.type == "enabled":
            chat.thinking_token_budget = thinking.budget_tokens
    chat.chat_template_kwargs = variables or None


def add_output_config(chat: ChatRequest, request: CountTokensRequest) -> None:
    config = request.output_config
    form: OutputFormat | None = request.output_format
    if config is not None:
        if config.effort is not None:
            chat.reasoning_effort = config.effort
        if config.format is not None:
            if form is not None:
                raise bad_request("output_format", "excludes output_config.format: one of the two")
            form = config.format
    if form is not None:
        chat.response_format = {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": form.schema, "strict": True},
        }


def add_sampling(chat: ChatRequest, request: MessagesRequest) -> None:
    chat.max_completion_tokens = max(1, request.max_tokens)
    chat.stop = request.stop_sequences or None
    chat.temperature = request.temperature
    chat.top_p = request.top_p
    chat.top_k = request.top_k
    chat.min_p = request.min_p
    chat.seed = request.seed
    chat.ignore_eos = request.ignore_eos
    chat.priority = request.priority
    chat.user = request.metadata.user_id if request.metadata is not None else None
    if request.service_tier is not None:
        chat.service_tier = "auto" if request.service_tier == "auto" else "default"
