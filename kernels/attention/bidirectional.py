"""Attention in both directions over the rows of a ragged batch, as encoders have it: no cache, no pages.

The interface is that of the paged back ends: `plan` once per step, `run` once per layer.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

# Rows whose lengths differ by less than this share are attended over together, the shorter ones filled up.
FILL_SHARE = 0.25
FILL_TOKENS = 8


class BidirectionalAttention(Protocol):
    """Not thread-safe; the device thread owns it."""

    name: str

    def plan(self, lens: npt.NDArray[np.int32]) -> None:
        """`lens` (rows,): how many consecutive tokens of the batch each row has, at least 1. On the host."""

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Each (tokens, num_heads, head_dim); every token attends to all tokens of its row, scale head_dim^-½."""


class TorchBidirectional:
    """One row at a time in float32: slow, obviously right, the oracle."""

    name = "torch"

    def __init__(self) -> None:
        self._rows: list[slice] = []

    def plan(self, lens: npt.NDArray[np.int32]) -> None:
        """Row lengths in tokens."""
        ends = np.cumsum(lens)
        self._rows = [slice(*span) for span in zip((ends - lens).tolist(), ends.tolist(), strict=True)]

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """(tokens, num_heads, head_dim) in q's dtype."""
        out = []
        for row in self._rows:
            scores = torch.einsum("qhd,khd->hqk", q[row].float(), k[row].float()) * q.shape[-1] ** -0.5
            out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[row].float()).to(q.dtype))
        return torch.cat(out)


class PaddedBidirectional:
    """Rows of similar length side by side, through torch's fused attention."""

    name = "sdpa"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._groups: list[Group] = []

    def plan(self, lens: npt.NDArray[np.int32]) -> None:
        """Sort the rows into groups of similar length; a row alone in its group needs neither filling nor mask."""
        starts = np.cumsum(lens) - lens
        order = np.argsort(lens, kind="stable")
        self._groups = []
        first = 0
        while first < len(order):
            shortest = int(lens[order[first]])
            most = shortest + max(FILL_TOKENS, int(FILL_SHARE * shortest))
            last = first + int(np.searchsorted(lens[order[first:]], most, side="right"))
            rows = order[first:last]
            self._groups.append(Group(starts[rows], lens[rows], self._device))
            first = last

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """(tokens, num_heads, head_dim) in q's dtype."""
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for group in self._groups:
            attended = F.scaled_dot_product_attention(
                group.gather(q), group.gather(k), group.gather(v), attn_mask=group.mask
            )
            group.scatter(attended, out)
        return out


class Group:
    """Rows of a batch laid out as (rows, longest): where their tokens are, and which places are only filled up."""

    def __init__(
        self, starts: npt.NDArray[np.int64], lens: npt.NDArray[np.int32], device: torch.device
    ) -> None:
        counting = np.arange(int(lens.max()))
        real = counting < lens[:, None]
        places = np.where(real, starts[:, None] + counting, starts[:, None])
        self.shape = real.shape
        self.places = torch.from_numpy(places.ravel()).to(device)
        self.mask: torch.Tensor | None = None
        self.real: torch.Tensor | None = None
        if not real.all():
            self.mask = torch.from_numpy(real[:, None, None, :]).to(device)
            self.real = torch.from_numpy(np.flatnonzero(real)).to(device)
            self.places_real = self.places[self.real]

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, dim) -> (rows, heads, longest, dim)."""
        return x.index_select(0, self.places).view(*self.shape, *x.shape[1:]).transpose(1, 2)

    def scatter(self, attended: torch.Tensor, out: torch.Tensor) -> None:
        """(rows, heads, longest, dim) to its tokens' places in `out`."""
        flat = attended.transpose(1, 2).flatten(0, 1)
        if self.real is None:
            out.index_copy_(0, self.places, flat)
        else:
            out.index_copy_(0, self.places_real, flat.index_select(0, self.real))
