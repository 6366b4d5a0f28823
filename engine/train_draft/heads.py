"""What both kinds of heads are to training: rows from the target's states, then steps from their own."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from .layer import Rows


class DraftHead(nn.Module, ABC):
    """Row p of a text takes the embedding of token p + 1 and the target's state at p, and drafts token p + 2.

    `target_ids` (draft vocabulary,) int64 are the target's ids of its logits; `aux_layers` are the layers whose inputs
    it reads (none: the one state after the final norm). `cos_sin` (max_position, rotary_dim) float32.
    """

    target_ids: torch.Tensor
    cos_sin: torch.Tensor
    aux_layers: tuple[int, ...]

    @abstractmethod
    def fused(self, states: torch.Tensor) -> torch.Tensor:
        """States of the target (B, L, n * hidden_size) -> (B, L, hidden_size), what a first step reads."""

    @abstractmethod
    def rows(
        self, embeddings: torch.Tensor, states: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor
    ) -> Rows:
        """Keys and values of all rows; embeddings and states (B, L, hidden_size), positions (B, L)."""

    @abstractmethod
    def step(
        self,
        embeddings: torch.Tensor,
        states: torch.Tensor,
        positions: torch.Tensor,
        rows: Rows,
        *,
        first: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A step of all chains: (B, M, hidden_size) each -> the states that the next step reads, and those that
        `logits` reads. The `first` one's keys are among the rows already; every other one adds its own."""

    @abstractmethod
    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> (..., draft vocabulary)."""
