"""GLM 4.5 and later: as Qwen 3; a prompt that switches thinking off ends in `<think></think>`."""

from __future__ import annotations

from .marked import MarkedThinking


class Glm45(MarkedThinking):
    names = ("glm45", "glm47")

    def matches(self, model_type: str, template: str) -> bool:
        return model_type.startswith("glm") and "</think>" in template
