"""Every tool-call format, by the names that `--tool-call-parser` takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..harmony import HarmonyTools
from ..interface import ToolFormat
from .deepseek_v3 import DeepseekV3Format, DeepseekV31Format
from .deepseek_v32 import DeepseekV4Format, DeepseekV32Format
from .glm import Glm45Format, Glm47Format
from .hermes import HermesFormat
from .kimi_k2 import KimiK2Format
from .llama3_json import LlamaJsonFormat
from .minimax_m2 import MinimaxM2Format
from .mistral import MistralFormat
from .pythonic import PythonicFormat
from .qwen3_coder import Qwen3CoderFormat

FORMATS: tuple[ToolFormat, ...] = (
    HarmonyTools(),
    HermesFormat(),
    Qwen3CoderFormat(),
    Glm45Format(),
    Glm47Format(),
    DeepseekV3Format(),
    DeepseekV31Format(),
    DeepseekV32Format(),
    DeepseekV4Format(),
    KimiK2Format(),
    MinimaxM2Format(),
    MistralFormat(),
    PythonicFormat(),
    LlamaJsonFormat(),
)

_BY_NAME: Mapping[str, ToolFormat] = MappingProxyType(
    {name: known for known in FORMATS for name in known.names}
)
NAMES: tuple[str, ...] = tuple(_BY_NAME)


def find(name: str) -> ToolFormat | None:
    """The format of this name; None if there is none."""
    return _BY_NAME.get(name)


def detect(model_type: str, template: str) -> ToolFormat | None:
    """The format that a model of this type (config.json) with this chat template writes; None if none is known."""
    for known in FORMATS:
        if known.matches(model_type, template):
            return known
    return None
