"""Sampling on GPUs: draws in Triton, penalties and scores in torch."""

from __future__ import annotations

import torch

from ..sampling.interface import Float64, Int32, SamplingParameters
from ..sampling.reference import TorchSampling
from ..staged import on_device
from .draw import UNUSED_BITS, draw


class CudaSampling(TorchSampling):
    def argmax(self, logits: torch.Tensor) -> torch.Tensor:
        """(n, V) -> (n,) int32: the first of the largest."""
        return logits.argmax(-1).to(torch.int32)

    def sample(
        self,
        logits: torch.Tensor,
        how: SamplingParameters,
        slots: Int32,
        uniform: Float64,
        rows: Int32 | None = None,
    ) -> torch.Tensor:
        """One token for each of `slots` (n,), drawn from its row of logits: (n,) int32."""
        if logits.dtype not in UNUSED_BITS or logits.stride(1) != 1:
            return super().sample(logits, how, slots, uniform, rows)
        assert len(slots) <= len(logits) if rows is None else len(rows) == len(slots)
        device = logits.device
        return draw(
            logits,
            how,
            on_device(slots, device),
            on_device(uniform, device),
            None if rows is None else on_device(rows, device),
        )
