"""Qwen3, dense (arXiv:2505.09388): Llama's block with an RMSNorm on every query and key head before rotation."""

from __future__ import annotations

from ..layers.attention import Attention
from ..layers.decoder import Decoder, DecoderLayer
from ..layers.mlp import GatedMLP
from ..layers.parts import LayerParts


class Qwen3(Decoder):
    def layer(self, parts: LayerParts) -> DecoderLayer:
        bias = parts.config.attention_bias
        return DecoderLayer(
            parts,
            attention=Attention(parts, qkv_bias=bias, output_bias=bias, qk_norm=True),
            mlp=GatedMLP(parts, bias=False),
        )
