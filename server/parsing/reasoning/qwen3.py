"""Qwen 3 and whatever else thinks between `<think>` and `</think>` when it wants to: the model opens it, or the prompt."""

from __future__ import annotations

from .marked import MarkedThinking


class Qwen3(MarkedThinking):
    names = ("qwen3", "qwen3-thinking", "qwen3_thinking")

    def matches(self, model_type: str, template: str) -> bool:
        return "</think>" in template
