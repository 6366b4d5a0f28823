"""The EAGLE-3 head (arXiv:2503.01840), tensor for tensor as published checkpoints of `LlamaForCausalLMEagle3` have it.

Row p, at rotary position p, reads E = embed_tokens[token p + 1] and, of the target's states at p, the residual stream
(before any norm) where it enters three layers: G = fc(concatenation low, middle, high). With
`x = [input_layernorm(E), hidden_norm(G)]` (the embedding first): `H = G + self_attn(x)`,
`H = H + mlp(post_attention_layernorm(H))`. Logits over the draft vocabulary are `lm_head(norm(H))`. A further step of
the chain, at position p + j, has H (before `norm`) in place of G: `fc` is for the target's states alone.
"""

from __future__ import annotations

import torch
from torch import nn

from .heads import DraftHead
from .layer import ChainAttention, GatedMLP, LayerShape, RMSNorm, Rows, initialise


class MidLayer(nn.Module):
    """The one decoder layer; `midlayer` in checkpoints."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.self_attn = ChainAttention(shape)
        self.mlp = GatedMLP(shape)
        self.hidden_norm = RMSNorm(shape.hidden_size, shape.eps)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.eps)

    def joined(self, embeddings: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """(B, N, hidden_size) twice -> (B, N, 2 * hidden_size)."""
        return torch.cat((self.input_layernorm(embeddings), self.hidden_norm(states)), dim=-1)


class Eagle3Head(DraftHead):
    """`shape.in_size` is twice the hidden size. `cos_sin` is the rotary table of the target."""

    def __init__(
        self,
        shape: LayerShape,
        aux_layers: tuple[int, ...],
        target_ids: torch.Tensor,
        cos_sin: torch.Tensor,
        *,
        seed: int,
    ) -> None:
        super().__init__()
        self.aux_layers = aux_layers
        hidden = shape.hidden_size
        self.fc = nn.Linear(len(aux_layers) * hidden, hidden, bias=False)
        self.midlayer = MidLayer(shape)
        self.norm = RMSNorm(hidden, shape.eps)
        self.lm_head = nn.Linear(hidden, len(target_ids), bias=False)
        self.register_buffer("target_ids", target_ids, persistent=False)
        self.register_buffer("cos_sin", cos_sin, persistent=False)
        initialise(self, 0.02, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def start_from(self, norm: torch.Tensor, lm_head: torch.Tensor) -> None:
        """Begin with the target's final norm (hidden_size,) and its output head (vocab_size, hidden_size)."""
        self.norm.weight.copy_(norm)
        self.lm_head.weight.copy_(lm_head[self.target_ids])
        # The mean of the three states: a start from which the stream has the target's own directions.
        parts = [torch.eye(len(norm)) / len(self.aux_layers) for _ in self.aux_layers]
        self.fc.weight.add_(torch.cat(parts, dim=1).to(self.fc.weight.device))

    def fused(self, states: torch.Tensor) -> torch.Tensor:
        """(B, L, 3 * hidden_size) -> (B, L, hidden_size)."""
        out: torch.Tensor = self.fc(states)
        return out

    def rows(
        self, embeddings: torch.Tensor, states: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor
    ) -> Rows:
        joined = self.midlayer.joined(embeddings, states)
        keys, values = self.midlayer.self_attn.keys_values(joined, positions, self.cos_sin)
        return Rows(keys, values, visible, [])

    def step(
        self,
        embeddings: torch.Tensor,
        states: torch.Tensor,
        positions: torch.Tensor,
        rows: Rows,
        *,
        first: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        layer, joined = self.midlayer, self.midlayer.joined(embeddings, states)
        if not first:
            rows.own.append(layer.self_attn.keys_values(joined, positions, self.cos_sin))
        states = states + layer.self_attn(joined, positions, self.cos_sin, rows)
        states = states + layer.mlp(layer.post_attention_layernorm(states))
        return states, self.norm(states)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.lm_head(states)
        return out
