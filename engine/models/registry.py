"""Which file builds which architecture: the one table of model families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..layers.decoder import Decoder
from .llama import Llama
from .mistral import Mistral
from .qwen2 import Qwen2
from .qwen3 import Qwen3


@dataclass(frozen=True, slots=True)
class Family:
    """A model class and what its configurations leave unsaid.

    `window_rule`: `none` ignores sliding_window; `all` gives it to every layer; `optional` only under
    use_sliding_window, from max_window_layers on. `layer_types`, where present, overrides which layers have it.
    """

    model: type[Decoder]
    window_rule: Literal["none", "all", "optional"] = "none"
    default_head_dim: int | None = None  # else hidden_size / num_attention_heads


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(Llama),
    "MistralForCausalLM": Family(Mistral, window_rule="all"),
    "Qwen2ForCausalLM": Family(Qwen2, window_rule="optional"),
    "Qwen3ForCausalLM": Family(Qwen3, window_rule="optional", default_head_dim=128),
}
