"""DeepSeek R1, V3.1 and later, and their distillations: the prompt opens or closes the thinking, else it is implied."""

from __future__ import annotations

from .marked import MarkedThinking


class DeepSeekR1(MarkedThinking):
    names = (
        *("deepseek_r1", "deepseek-r1", "deepseek_v3", "deepseek-v3", "deepseek_v31", "deepseek-v31"),
        *("deepseek_v32", "deepseek-v32", "deepseek_v4", "deepseek-v4"),
    )
    implied = True

    def matches(self, model_type: str, template: str) -> bool:
        # Templates that only take old thinking out of the history (V3) have `</think>` alone.
        return "<｜Assistant｜>" in template and "<think>" in template
