"""DeepSeek-V3 (arXiv:2412.19437): latent attention and a mixture of experts with shared ones, in plain operations.

Attention caches one vector a token for all heads: what keys and values are made from, and the key's rotated part. The
matrices between are moved over to queries and outputs (DeepSeek-V2, arXiv:2405.04434 section 2.1.2), so to the back ends
this is one KV head whose values are its keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...kernels.attention.torch_backend import as_stored, cast_to_pages
from ..batch import ForwardBatch, PagePlaces
from ..layers.decoder import Decoder, DecoderLayer
from ..layers.mlp import GatedMLP
from ..layers.parts import LayerParts

NORM_EPS = 1e-6  # of the latents, whatever the configuration says of the other norms


class LatentAttention:
    """Heads and cached vectors are laid out as (rotated dimensions, the others)."""

    def __init__(self, parts: LayerParts) -> None:
        config, weights, name = parts.config, parts.weights, f"{parts.name}.self_attn"
        assert config.latent is not None
        self.latent = latent = config.latent
        self.index = parts.index
        self.ops = parts.ops
        self.backend = parts.attention
        self.cos_sin = parts.cos_sin
        self.num_heads = heads = config.num_heads
        hidden, bias = config.hidden_size, config.attention_bias
        # Pairs to be rotated lie side by side in checkpoints, half a head apart in the kernels.
        rope = latent.rope_dim
        halves = torch.cat((torch.arange(0, rope, 2), torch.arange(1, rope, 2)))

        def rotated_first(weight: torch.Tensor, plain: int) -> torch.Tensor:
            """(heads, plain + rope, ...) -> the rotated dimensions first, in halves."""
            if weight.is_meta:
                return weight
            order = (
                torch.cat((plain + halves, torch.arange(plain)))
                if latent.interleaved
                else torch.arange(plain + rope).roll(rope)
            )
            return weight.index_select(1, order.to(weight.device))

        q_rows = heads * (latent.nope_dim + rope)
        self.q_down, self.q_norm = None, None
        if latent.q_rank is None:
            q = weights.tensor(f"{name}.q_proj.weight", (q_rows, hidden))
        else:
            self.q_down = parts.ops.linear(
                weights.tensor(f"{name}.q_a_proj.weight", (latent.q_rank, hidden)),
                weights.tensor(f"{name}.q_a_proj.bias", (latent.q_rank,)) if bias else None,
            )
            self.q_norm = weights.tensor(f"{name}.q_a_layernorm.weight", (latent.q_rank,))
            q = weights.tensor(f"{name}.q_b_proj.weight", (q_rows, latent.q_rank))
        q = rotated_first(q.view(heads, -1, q.shape[1]), latent.nope_dim)
        self.q = parts.ops.linear(q.reshape(q_rows, -1).contiguous())
        width = latent.rank + rope
        kv = weights.tensor(f"{name}.kv_a_proj_with_mqa.weight", (width, hidden))
        kv_bias = weights.tensor(f"{name}.kv_a_proj_with_mqa.bias", (width,)) if bias else None
        self.kv_down = parts.ops.linear(
            rotated_first(kv[None], latent.rank)[0].contiguous(),
            None if kv_bias is None else rotated_first(kv_bias[None], latent.rank)[0].contiguous(),
        )
        self.kv_norm = weights.tensor(f"{name}.kv_a_layernorm.weight", (latent.rank,))
        rows = heads * (latent.nope_dim + latent.value_dim)
        kv_up = weights.tensor(f"{name}.kv_b_proj.weight", (rows, latent.rank)).view(heads, -1, latent.rank)
        self.key_up = kv_up[:, : latent.nope_dim].contiguous()  # (heads, nope_dim, rank)
        self.value_up = kv_up[:, latent.nope_dim :].transpose(1, 2).contiguous()  # (heads, rank, value_dim)
        out_features = heads * latent.value_dim
        self.output = parts.ops.linear(
            weights.tensor(f"{name}.o_proj.weight", (hidden, out_features)),
            weights.tensor(f"{name}.o_proj.bias", (hidden,)) if bias else None,
        )

    def __call__(
        self, x: torch.Tensor, batch: ForwardBatch, wanted: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(T, hidden_size) -> (T, hidden_size), or (R, hidden_size) of the `wanted` tokens alone."""
        rope = self.latent.rope_dim
        low = x if self.q_down is None else self.q_down(x)
        if self.q_norm is not None:
            low = self.ops.rms_norm(low, self.q_norm, NORM_EPS)
        q = self.q(low).view(len(x), self.num_heads, -1)
        absorbed = torch.einsum("thn,hnr->thr", q[..., rope:], self.key_up)
        q, k = self._rotated(torch.cat((q[..., :rope], absorbed), -1), x, batch)
        k_pages, v_pages = batch.kv[self.index]
        attended = self.backend.run(q, k, k, k_pages, v_pages)[..., rope:]
        if wanted is not None:
            attended = attended.index_select(0, wanted)
        return self.output(torch.einsum("thr,hrv->thv", attended, self.value_up).flatten(1))

    def write(self, x: torch.Tensor, batch: ForwardBatch, places: PagePlaces) -> None:
        """What of x (T, hidden_size) is cached goes to its `places`, and nothing attends."""
        _, k = self._rotated(x.new_zeros((len(x), 0, self.kv_down.out_features)), x, batch)
        for pages in batch.kv[self.index]:
            as_stored(pages)[places.pages, places.offsets] = as_stored(cast_to_pages(k, pages.dtype))

    def _rotated(
        self, q: torch.Tensor, x: torch.Tensor, batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q (T, heads, rope_dim + rank) and the one key of each token, (T, 1, rope_dim + rank)."""
        low = self.kv_down(x)
        rope = self.latent.rope_dim
        normed = self.ops.rms_norm(low[:, rope:].contiguous(), self.kv_norm, NORM_EPS)
        k = torch.cat((low[:, :rope], normed), 1)[:, None]
        return self.ops.rotary(q, k, self.cos_sin, batch.positions)


class ExpertMLP:
    """Some experts of many for each token, chosen by affinity and a bias that balances them, beside shared ones."""

    def __init__(self, parts: LayerParts) -> None:
        config, weights, name = parts.config, parts.weights, f"{parts.name}.mlp"
        assert config.experts is not None
        self.experts = experts = config.experts
        hidden, inner = config.hidden_size, experts.intermediate_size
        # In float32 as the choice is: rounded, near ties would fall otherwise.
        self.router = weights.tensor(f"{name}.gate.weight", (experts.num, hidden), dtype=torch.float32)
        bias = f"{name}.gate.e_score_correction_bias"
        self.balance = weights.tensor(bias, (experts.num,), dtype=torch.float32)
        self.each = [
            GatedMLP(parts, bias=False, name=f"{name}.experts.{number}", intermediate_size=inner)
            for number in range(experts.num)
        ]
        self.shared = GatedMLP(
            parts,
            bias=False,
            name=f"{name}.shared_experts",
            intermediate_size=inner * experts.num_shared,
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, hidden_size) -> (T, hidden_size)."""
        out = self.shared(x).float()
        weights, chosen = self._route(x)
        for number, expert in enumerate(self.each):
            tokens, place = (chosen == number).nonzero(as_tuple=True)
            if len(tokens):
                share = weights[tokens, place, None]
                out.index_add_(0, tokens, expert(x.index_select(0, tokens)).float() * share)
        return out.to(x.dtype)

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and numbers of each token's experts, (T, num_chosen): of the best groups the best experts, by the
        balanced affinities; they are weighed by the plain ones."""
        experts = self.experts
        affinity = F.linear(x.float(), self.router).sigmoid()
        grouped = (len(x), experts.num_groups, experts.num // experts.num_groups)
        balanced = (affinity + self.balance).view(grouped)
        of_group = balanced.topk(2, dim=-1).values.sum(-1)
        groups = of_group.topk(experts.num_chosen_groups, dim=-1).indices
        allowed = torch.zeros_like(of_group, dtype=torch.bool).scatter_(1, groups, True)
        balanced = balanced.masked_fill(~allowed[..., None], float("-inf")).flatten(1)
        chosen = balanced.topk(experts.num_chosen, dim=-1).indices
        weights = affinity.gather(1, chosen)
        if experts.normalised:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * experts.scale, chosen


class DeepseekV3(Decoder):
    def layer(self, parts: LayerParts) -> DecoderLayer:
        assert parts.config.experts is not None
        is_dense = int(parts.name.rsplit(".", 1)[1]) < parts.config.experts.first_layer
        mlp = GatedMLP(parts, bias=False) if is_dense else ExpertMLP(parts)
        return DecoderLayer(parts, attention=LatentAttention(parts), mlp=mlp)
