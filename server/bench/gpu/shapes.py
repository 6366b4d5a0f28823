"""The shapes of the models that are measured, and the least bytes and operations that a step of each can do with.

Weights are random (`--load-format dummy`), so nothing is downloaded: a shape is a config.json. Weights are read once a
step, keys and values once a row; norms, activations and the embedding's few rows are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHT_BYTES = 2  # bfloat16


@dataclass(frozen=True, kw_only=True)
class Shape:
    name: str
    architecture: str
    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    def config(self) -> dict[str, Any]:
        """A config.json."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
            "bos_token_id": 0,
            "eos_token_id": 2,
        }

    def write(self, folder: Path) -> None:
        """A directory that can be served with dummy weights and another model's tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config(), indent=1) + "\n")

    @property
    def layer_parameters(self) -> int:
        """Of the products of all layers."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocabulary

    def kv_bytes(self, element_bytes: int) -> int:
        """Of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes

    def decode_bytes(self, batch: int, context: float, kv_element_bytes: int) -> float:
        weights = WEIGHT_BYTES * (self.layer_parameters + self.head_parameters)
        return weights + batch * context * self.kv_bytes(kv_element_bytes)

    def decode_flop(self, batch: int, context: float) -> float:
        attention = 4 * self.layers * self.heads * self.head_dim * context
        return batch * (2 * (self.layer_parameters + self.head_parameters) + attention)

    def prefill_flop(self, tokens: int) -> float:
        """Of a lone prompt: causal attention, and logits of its last token alone."""
        attention = 4 * self.layers * self.heads * self.head_dim * tokens * (tokens + 1) / 2
        return 2 * self.layer_parameters * tokens + 2 * self.head_parameters + attention


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            name="llama-3.1-8b",
            architecture="LlamaForCausalLM",
            model_type="llama",
            hidden=4096,
            intermediate=14_336,
            layers=32,
            heads=32,
            kv_heads=8,
            head_dim=128,
            vocabulary=128_256,
            tied=False,
        ),
        Shape(
            name="qwen3-0.6b",
            architecture="Qwen3ForCausalLM",
            model_type="qwen3",
            hidden=1024,
            intermediate=3072,
            layers=28,
            heads=16,
            kv_heads=8,
            head_dim=128,
            vocabulary=151_936,
            tied=True,
        ),
        Shape(
            name="tiny",
            architecture="Qwen3ForCausalLM",
            model_type="qwen3",
            hidden=64,
            intermediate=96,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=16,
            vocabulary=8192,  # more than the tokenizer that it is served with has, as with the large ones
            tied=True,
        ),
    )
}
