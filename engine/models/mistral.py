"""Mistral (arXiv:2310.06825): Llama's block without biases; layers may see a sliding window of keys only."""

from __future__ import annotations

from ..layers.attention import Attention
from ..layers.decoder import Decoder, DecoderLayer
from ..layers.mlp import GatedMLP
from ..layers.parts import LayerParts


class Mistral(Decoder):
    def layer(self, parts: LayerParts) -> DecoderLayer:
        return DecoderLayer(
            parts,
            attention=Attention(parts, qkv_bias=False, output_bias=False, qk_norm=False),
            mlp=GatedMLP(parts, bias=False),
        )
