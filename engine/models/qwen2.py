"""Qwen2 and 2.5 (arXiv:2407.10671): Llama's block with a bias on q, k and v."""

from __future__ import annotations

from ..layers.attention import Attention
from ..layers.decoder import Decoder, DecoderLayer
from ..layers.mlp import GatedMLP
from ..layers.parts import LayerParts


class Qwen2(Decoder):
    def layer(self, parts: LayerParts) -> DecoderLayer:
        return DecoderLayer(
            parts,
            attention=Attention(parts, qkv_bias=True, output_bias=False, qk_norm=False),
            mlp=GatedMLP(parts, bias=False),
        )
