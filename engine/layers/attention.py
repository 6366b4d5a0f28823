"""The attention block: project to q, k, v; norm and rotate; attend over paged keys and values; project back."""

from __future__ import annotations

import torch

from ...kernels.attention.interface import Rotation
from ...kernels.attention.rotated import rotated
from ...kernels.attention.torch_backend import as_stored, cast_to_pages
from ..batch import ForwardBatch, PagePlaces
from ..parallel.grid import local_config
from .linear import row_parallel
from .parts import LayerParts


class Attention:
    """Grouped-query self-attention of one layer; q, k and v come out of one product. Ranks share out the heads."""

    def __init__(
        self,
        parts: LayerParts,
        *,
        qkv_bias: bool,
        output_bias: bool,
        qk_norm: bool,
        input_size: int | None = None,  # of what is projected; None = hidden_size
    ) -> None:
        config, weights, name = parts.config, parts.weights, f"{parts.name}.self_attn"
        self.index = parts.index
        self.ops = parts.ops
        self.attend = rotated(parts.ops, parts.attention)
        self.cos_sin = parts.cos_sin
        self.eps = config.rms_norm_eps
        local = local_config(config, parts.shard.tensor.size)
        self.heads = (local.num_heads, local.num_kv_heads, local.num_kv_heads)
        self.head_dim = config.head_dim
        self.out_features = local.num_heads * config.head_dim

        hidden = config.hidden_size
        q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        widths = (q_width, kv_width, kv_width)
        kv_part = parts.shard.kv_part(config.num_kv_heads, config.head_dim)
        own = [parts.shard.part(q_width), kv_part, kv_part]
        names = [f"{name}.{x}_proj" for x in "qkv"]
        self.qkv = parts.ops.linear(
            weights.stacked(
                [f"{n}.weight" for n in names], [(width, input_size or hidden) for width in widths], own
            ),
            weights.stacked([f"{n}.bias" for n in names], [(width,) for width in widths], own)
            if qkv_bias
            else None,
        )
        self.output = row_parallel(parts, f"{name}.o_proj", hidden, q_width, bias=output_bias)
        self.q_norm = weights.tensor(f"{name}.q_norm.weight", (config.head_dim,)) if qk_norm else None
        self.k_norm = weights.tensor(f"{name}.k_norm.weight", (config.head_dim,)) if qk_norm else None

    def __call__(
        self, x: torch.Tensor, batch: ForwardBatch, wanted: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(T, hidden_size) -> (T, hidden_size), or (R, hidden_size) of the `wanted` tokens alone."""
        q, k, v = self._project(x)
        k_pages, v_pages = batch.kv[self.index]
        attended = self.attend(q, k, v, k_pages, v_pages, self._rotation(batch))
        attended = attended.view(x.shape[0], self.out_features)
        return self.output(attended if wanted is None else attended.index_select(0, wanted))

    def write(self, x: torch.Tensor, batch: ForwardBatch, places: PagePlaces) -> None:
        """The keys and values of x (T, hidden_size) go to their `places`, and nothing attends."""
        q, k, v = self._project(x)
        r = self._rotation(batch)
        _, k = self.ops.rotary(q, k, r.cos_sin, r.positions, r.q_norm, r.k_norm, r.eps)
        for pages, new in zip(batch.kv[self.index], (k, v), strict=True):
            as_stored(pages)[places.pages, places.offsets] = as_stored(cast_to_pages(new, pages.dtype))

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v of each token, (T, heads, head_dim)."""
        qkv = self.qkv(x).view(x.shape[0], -1, self.head_dim)
        q, k, v = qkv.split_with_sizes(self.heads, dim=1)
        return q, k, v

    def _rotation(self, batch: ForwardBatch) -> Rotation:
        return Rotation(self.cos_sin, batch.positions, self.q_norm, self.k_norm, self.eps)
