"""Tool calls as chat completions show them, and the finish reason of a choice that made some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from ...scheduler.messages import FinishReason
from ..parsing.call_ids import OPENAI
from ..parsing.events import CallArguments, CallStart

ChatFinishReason: TypeAlias = FinishReason | Literal["tool_calls"]


class ChatCalls:
    """The calls of one choice.

    `reason` is how a choice with calls ends that would have ended with "stop". OpenAI and vLLM: "tool_calls" where
    the model chose to call (`tool_choice` auto) or what to call (required), "stop" where the client named the
    function. A choice that was cut off stays "length".
    """

    def __init__(self, new_id: Callable[[], str] = OPENAI.new, *, named: bool = False) -> None:
        self._new_id = new_id
        self._reason: ChatFinishReason = "stop" if named else "tool_calls"
        self._ids: list[str] = []
        self._names: list[str] = []
        self._arguments: list[list[str]] = []

    def start(self, event: CallStart) -> dict[str, Any]:
        """The delta that begins a call."""
        assert event.call == len(self._ids), "calls are numbered in their order"
        self._ids.append(event.id or self._new_id())
        self._names.append(event.name)
        self._arguments.append([])
        function = {"name": event.name, "arguments": ""}
        return {"index": event.call, "id": self._ids[-1], "type": "function", "function": function}

    def arguments(self, event: CallArguments) -> dict[str, Any]:
        """The delta that carries a call on."""
        self._arguments[event.call].append(event.text)
        return {"index": event.call, "function": {"arguments": event.text}}

    def whole(self) -> list[dict[str, Any]]:
        """`message.tool_calls`."""
        return [
            {"id": id_, "type": "function", "function": {"name": name, "arguments": "".join(arguments)}}
            for id_, name, arguments in zip(self._ids, self._names, self._arguments, strict=True)
        ]

    def finish_reason(self, reason: FinishReason) -> ChatFinishReason:
        return self._reason if reason == "stop" and self._ids else reason
