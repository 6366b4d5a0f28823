"""The next-token layer (DeepSeek-V3, arXiv:2412.19437 section 2.2) with the names and sizes of MiMo's `mtp_layers`.

Row p, at rotary position p, reads E = embed_tokens[token p + 1] (zeros at p = 0, as vLLM and SGLang have it) and S,
the target's state at p after its final norm. `x = input_proj([hidden_layernorm(S), token_layernorm(E)])` (the state
first) goes through a decoder layer of the target's family, `x + self_attn(input_layernorm(x))` and so on, without a
sliding window; then `S' = final_layernorm(x)`. Logits are the target's own `lm_head(S')`. A further step of the chain,
at position p + j, has S' in place of S.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from .heads import DraftHead
from .layer import ChainAttention, GatedMLP, LayerShape, RMSNorm, Rows, initialise


class MTPHead(DraftHead):
    """`lm_head` (vocab_size, hidden_size) is the target's, not trained. `cos_sin` is the rotary table of the target."""

    lm_head: torch.Tensor

    def __init__(self, shape: LayerShape, lm_head: torch.Tensor, cos_sin: torch.Tensor, *, seed: int) -> None:
        super().__init__()
        self.aux_layers = ()
        hidden = shape.hidden_size
        self.token_layernorm = RMSNorm(hidden, shape.eps)
        self.hidden_layernorm = RMSNorm(hidden, shape.eps)
        self.input_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.input_layernorm = RMSNorm(hidden, shape.eps)
        self.self_attn = ChainAttention(shape)
        self.post_attention_layernorm = RMSNorm(hidden, shape.eps)
        self.mlp = GatedMLP(shape)
        self.final_layernorm = RMSNorm(hidden, shape.eps)
        self.register_buffer("lm_head", lm_head, persistent=False)
        self.register_buffer("cos_sin", cos_sin, persistent=False)
        self.register_buffer("target_ids", torch.arange(len(lm_head)), persistent=False)
        initialise(self, 0.02, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def start_from(self, norm: torch.Tensor, last_layer: Mapping[str, torch.Tensor]) -> None:
        """Begin with the target's final norm and its last decoder layer, by the names below `model.layers.N.`."""
        self.final_layernorm.weight.copy_(norm)
        own = dict(self.named_parameters())
        for name, tensor in last_layer.items():
            own[name].copy_(tensor)

    def fused(self, states: torch.Tensor) -> torch.Tensor:
        """The state itself."""
        return states

    def rows(
        self, embeddings: torch.Tensor, states: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor
    ) -> Rows:
        x = self.input_layernorm(self.joined(embeddings, states, positions))
        keys, values = self.self_attn.keys_values(x, positions, self.cos_sin)
        return Rows(keys, values, visible, [])

    def joined(self, embeddings: torch.Tensor, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(B, N, hidden_size) twice, positions (B, N) -> (B, N, hidden_size)."""
        embeddings = embeddings.masked_fill((positions == 0)[..., None], 0.0)
        both = torch.cat((self.hidden_layernorm(states), self.token_layernorm(embeddings)), dim=-1)
        out: torch.Tensor = self.input_proj(both)
        return out

    def step(
        self,
        embeddings: torch.Tensor,
        states: torch.Tensor,
        positions: torch.Tensor,
        rows: Rows,
        *,
        first: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.joined(embeddings, states, positions)
        normed = self.input_layernorm(x)
        if not first:
            rows.own.append(self.self_attn.keys_values(normed, positions, self.cos_sin))
        x = x + self.self_attn(normed, positions, self.cos_sin, rows)
        x = x + self.mlp(self.post_attention_layernorm(x))
        out = self.final_layernorm(x)
        return out, out

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self.lm_head.to(states.dtype))
