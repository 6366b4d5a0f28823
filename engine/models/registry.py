"""Which file builds which architecture: the one table of model families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..layers.decoder import Decoder
from ..layers.encoder import Encoder
from .bert import Bert
from .config import Head
from .deepseek import DeepseekV3
from .llama import Llama
from .mistral import Mistral
from .qwen2 import Qwen2
from .qwen3 import Qwen3
from .roberta import Roberta


@dataclass(frozen=True, slots=True)
class Family:
    """A model class and what its configurations leave unsaid.

    `window_rule`: `none` ignores sliding_window; `all` gives it to every layer; `optional` only under
    use_sliding_window, from max_window_layers on. `layer_types`, where present, overrides which layers have it.
    """

    model: type[Decoder]
    window_rule: Literal["none", "all", "optional"] = "none"
    default_head_dim: int | None = None  # else hidden_size / num_attention_heads


DECODERS: dict[str, Family] = {
    "DeepseekV3": Family(DeepseekV3),
    "Llama": Family(Llama),
    "MiMo": Family(Qwen2, window_rule="optional"),  # arXiv:2505.07608
    "Mistral": Family(Mistral, window_rule="all"),
    "Qwen2": Family(Qwen2, window_rule="optional"),
    "Qwen3": Family(Qwen3, window_rule="optional", default_head_dim=128),
}
ENCODERS: dict[str, type[Encoder]] = {"Bert": Bert, "Roberta": Roberta, "XLMRoberta": Roberta}

# How the architectures of a family are named, and what their checkpoints have after the last layer.
DECODER_HEADS: dict[str, Head] = {
    "ForCausalLM": "lm",
    "Model": "none",
    "ForSequenceClassification": "classify",
}
ENCODER_HEADS: dict[str, Head] = {
    "Model": "none",
    "ForMaskedLM": "none",
    "ForSequenceClassification": "classify",
}
HEADS: dict[str, Head] = {
    **{f"{name}{suffix}": head for name in DECODERS for suffix, head in DECODER_HEADS.items()},
    **{f"{name}{suffix}": head for name in ENCODERS for suffix, head in ENCODER_HEADS.items()},
}
FAMILIES: dict[str, Family] = {
    f"{name}{suffix}": family for name, family in DECODERS.items() for suffix in DECODER_HEADS
}
ENCODER_FAMILIES: dict[str, type[Encoder]] = {
    f"{name}{suffix}": family for name, family in ENCODERS.items() for suffix in ENCODER_HEADS
}
