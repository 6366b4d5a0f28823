"""The operations a model's forward pass is made of; one implementation per back end, chosen by `select.py`.

Shapes: T tokens, H hidden size. Implementations compute in float32 inside and return the input's dtype.
Where a docstring says "in place", callers must use the returned tensors all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from .sampling.interface import Sampling


class Product(Protocol):
    """Made with a prepared (possibly repacked) weight."""

    in_features: int
    out_features: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, in_features) -> (T, out_features), same dtype."""


class Linear(Product, Protocol):
    """y = x @ weight.T + bias."""

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, (N,) int -> (N, in_features): embedding lookup in a tied head without a copy."""


class NotRecordable(Exception):
    """A pass cannot be recorded; the message names the operation that is in the way."""


class Graph(Protocol):
    """A recorded pass."""

    result: torch.Tensor  # of the recording, then of the latest replay

    def replay(self) -> torch.Tensor:
        """Do it again on what its inputs hold now. The result is good until the next replay of any recording."""


class Recorder(Protocol):
    """Records passes, so that running them again costs no Python: what CUDA graphs are, for any device."""

    def record(self, work: Callable[[], torch.Tensor]) -> Graph:
        """Do `work` and keep what it did. Its inputs must be at the same addresses whenever it is replayed.

        Raises:
            NotRecordable: nothing is kept; what `work` wrote until then may be written again.
        """


class Ops(Protocol):
    name: str
    sampling: Sampling

    def recorder(self) -> Recorder | None:
        """Something that records passes made of these operations, or None where that cannot be."""

    def embedding(self, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Rows of table (V, H) at ids (T,) int32: (T, H)."""

    def linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, is_head: bool = False
    ) -> Linear:
        """Prepare a weight (out, in) for products; takes ownership of it, may repack or quantise it once.

        `is_head`: its results are logits, for which quantisation keeps more bits.
        """

    def gated_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
        """Prepare gate (I, H) above up (I, H), one weight (2I, H), and its bias (2I,): x (T, H) -> (T, I), silu of
        the first half of x @ weight.T + bias times the second."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """(..., H) -> (..., H)."""

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """residual + x in place in `residual`; returns (rms_norm of the sum, the sum). `x` may be overwritten."""

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """(T, 2I) -> (T, I): silu of the first half times the second."""

    def rotary(
        self,
        q: torch.Tensor,  # (T, num_heads, head_dim)
        k: torch.Tensor,  # (T, num_kv_heads, head_dim)
        cos_sin: torch.Tensor,  # (max_position, rotary_dim) float32: cos in the first half, sin in the second
        positions: torch.Tensor,  # (T,) int32
        q_norm: torch.Tensor | None = None,  # (head_dim,) RMSNorm weight applied per head before rotating
        k_norm: torch.Tensor | None = None,
        eps: float = 1e-6,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Optional per-head RMSNorm, then NeoX-style rotary embedding (half with half), in place."""

    def copy_rows(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """source (T, N) into target (T, N), of one dtype; either's rows may be part of longer ones."""

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Tensors (T, ...) beside each other, along the second dimension."""

    def mask_logits(self, logits: torch.Tensor, bits: torch.Tensor, rows: torch.Tensor) -> None:
        """Forbid tokens, in place: their logits become -inf.

        logits (n, vocab_size); rows (k,) int32, which of them; bits (k, ceil(vocab_size / 32)) int32, where bit t % 32
        of word t // 32 is set if token t may come. All on the same device.
        """
