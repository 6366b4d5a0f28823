"""Llama 2 and 3.x (arXiv:2307.09288, arXiv:2407.21783): pre-norm decoder, rotary GQA attention, SwiGLU."""

from __future__ import annotations

from ..layers.attention import Attention
from ..layers.decoder import Decoder, DecoderLayer
from ..layers.mlp import GatedMLP
from ..layers.parts import LayerParts


class Llama(Decoder):
    def layer(self, parts: LayerParts) -> DecoderLayer:
        bias = parts.config.attention_bias
        return DecoderLayer(
            parts,
            attention=Attention(parts, qkv_bias=bias, output_bias=bias, qk_norm=False),
            mlp=GatedMLP(parts, bias=parts.config.mlp_bias),
        )
