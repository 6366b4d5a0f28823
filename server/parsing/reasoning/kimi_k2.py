"""Kimi K2 Thinking: a section of tool calls may begin without a closing marker, in the middle of the thinking."""

from __future__ import annotations

from .marked import MarkedThinking

CALLS = "<|tool_calls_section_begin|>"


class KimiK2(MarkedThinking):
    names = ("kimi_k2", "kimi")
    markers = (*MarkedThinking.markers, CALLS)
    ends_with = (CALLS,)

    def matches(self, model_type: str, template: str) -> bool:
        return "</think>" in template and (model_type.startswith("kimi") or CALLS in template)
