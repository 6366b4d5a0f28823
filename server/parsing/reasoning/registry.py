"""Every reasoning format by the names under which vLLM and SGLang know it."""

from __future__ import annotations

from ..harmony import HarmonyReasoning
from ..interface import ReasoningFormat
from .deepseek_r1 import DeepSeekR1
from .glm45 import Glm45
from .kimi_k2 import KimiK2
from .minimax_m2 import MiniMaxM2, MiniMaxM2AppendThink
from .qwen3 import Qwen3

# `auto` takes the first that matches: the most general one is last.
FORMATS: tuple[ReasoningFormat, ...] = (
    HarmonyReasoning(),
    KimiK2(),
    MiniMaxM2(),
    MiniMaxM2AppendThink(),
    Glm45(),
    DeepSeekR1(),
    Qwen3(),
)
NAMES: tuple[str, ...] = tuple(name for format in FORMATS for name in format.names)


def find(name: str) -> ReasoningFormat | None:
    """The format of this name; None if there is none."""
    return next((format for format in FORMATS if name in format.names), None)


def detect(model_type: str, template: str) -> ReasoningFormat | None:
    """The format of a model of this type (config.json) with this chat template; None if it does not think."""
    return next((format for format in FORMATS if format.matches(model_type, template)), None)
