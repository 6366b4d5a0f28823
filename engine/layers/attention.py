"""The attention block: project to q, k, v; norm and rotate; attend over paged keys and values; project back."""

from __future__ import annotations

import torch

from ...kernels.attention.interface import Rotation
from ...kernels.attention.rotated import rotated
from ..batch import ForwardBatch
from .parts import LayerParts


class Attention:
    """Grouped-query self-attention of one layer; q, k and v come out of one product."""

    def __init__(self, parts: LayerParts, *, qkv_bias: bool, output_bias: bool, qk_norm: bool) -> None:
        config, weights, name = parts.config, parts.weights, f"{parts.name}.self_attn"
        self.index = parts.index
        self.attend = rotated(parts.ops, parts.attention)
        self.cos_sin = parts.cos_sin
        self.eps = config.rms_norm_eps
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.head_dim = config.head_dim
        self.out_features = config.num_heads * config.head_dim

        hidden = config.hidden_size
        widths = [heads * config.head_dim for heads in self.heads]
        names = [f"{name}.{x}_proj" for x in "qkv"]
        self.qkv = parts.ops.linear(
            weights.stacked([f"{n}.weight" for n in names], [(width, hidden) for width in widths]),
            weights.stacked([f"{n}.bias" for n in names], [(width,) for width in widths])
            if qkv_bias
            else None,
        )
        self.output = parts.ops.linear(
            weights.tensor(f"{name}.o_proj.weight", (hidden, self.out_features)),
            weights.tensor(f"{name}.o_proj.bias", (hidden,)) if output_bias else None,
        )
        self.q_norm = weights.tensor(f"{name}.q_norm.weight", (config.head_dim,)) if qk_norm else None
        self.k_norm = weights.tensor(f"{name}.k_norm.weight", (config.head_dim,)) if qk_norm else None

    def __call__(
        self, x: torch.Tensor, batch: ForwardBatch, wanted: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(T, hidden_size) -> (T, hidden_size), or (R, hidden_size) of the `wanted` tokens alone."""
        tokens = x.shape[0]
        qkv = self.qkv(x).view(tokens, -1, self.head_dim)
        q, k, v = qkv.split_with_sizes(self.heads, dim=1)
        k_pages, v_pages = batch.kv[self.index]
        rotation = Rotation(self.cos_sin, batch.positions, self.q_norm, self.k_norm, self.eps)
        attended = self.attend(q, k, v, k_pages, v_pages, rotation)
        attended = attended.view(tokens, self.out_features)
        return self.output(attended if wanted is None else attended.index_select(0, wanted))
