"""Sampling on CPUs: C++ kernels for bfloat16 and float32 logits, plain torch for other dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..sampling.interface import Float64, Int32, Penalties, SamplingParameters
from ..sampling.reference import TorchSampling
from .library import SUFFIXES, Library

# What is expected to run longer than some 50 microseconds gives the GIL back meanwhile.
LONG_SCAN = 1_000_000  # logits of an argmax
LONG_DRAW = 100_000  # logits of draws, scores and penalties

NAMES = ("argmax", "sample", "score")


class CpuSampling:
    def __init__(self, library: Library) -> None:
        self._torch = TorchSampling()
        self._quick = kernels_of(library.quick)
        self._long = kernels_of(library.long)
        self._penalise = library.long["penalise"]

    def argmax(self, logits: torch.Tensor) -> torch.Tensor:
        """(n, V) -> (n,) int32: the first of the largest."""
        if logits.dtype not in SUFFIXES or logits.stride(1) != 1:
            return self._torch.argmax(logits)
        count, vocab = logits.shape
        tokens = torch.empty(count, dtype=torch.int32)
        table = self._quick if count * vocab < LONG_SCAN else self._long
        table[logits.dtype]["argmax"](logits.data_ptr(), logits.stride(0), vocab, count, tokens.data_ptr())
        return tokens

    def sample(
        self,
        logits: torch.Tensor,
        how: SamplingParameters,
        slots: Int32,
        uniform: Float64,
        rows: Int32 | None = None,
    ) -> torch.Tensor:
        """One token for each of `slots` (n,), drawn from its row of logits: (n,) int32."""
        if logits.dtype not in SUFFIXES or logits.stride(1) != 1:
            return self._torch.sample(logits, how, slots, uniform, rows)
        count, vocab = len(slots), logits.shape[1]
        assert slots.flags.c_contiguous
        assert uniform.flags.c_contiguous
        tokens = torch.empty(count, dtype=torch.int32)
        table = self._quick if count * vocab < LONG_DRAW else self._long
        table[logits.dtype]["sample"](
            logits.data_ptr(),
            logits.stride(0),
            vocab,
            address_of(rows, count, len(logits)),
            count,
            slots.ctypes.data,
            how.temperature.data_ptr(),
            how.top_k.data_ptr(),
            how.top_p.data_ptr(),
            how.min_p.data_ptr(),
            uniform.ctypes.data,
            tokens.data_ptr(),
        )
        return tokens

    def penalise(self, logits: torch.Tensor, penalties: Penalties, slots: Int32, count_rows: Int32) -> None:
        """logits (n, V) float32 of `slots` (n,), in place: repetition, then frequency and presence."""
        assert logits.dtype == torch.float32
        assert logits.stride(1) == 1
        self._penalise(
            logits.data_ptr(),
            logits.stride(0),
            logits.shape[1],
            len(slots),
            slots.ctypes.data,
            count_rows.ctypes.data,
            penalties.output_counts.data_ptr(),
            penalties.prompt_has.data_ptr(),
            penalties.repetition.data_ptr(),
            penalties.frequency.data_ptr(),
            penalties.presence.data_ptr(),
        )

    def score(
        self, logits: torch.Tensor, token_ids: torch.Tensor, k: int, rows: Int32 | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log probabilities (n,), ranks (n,), the k best ids (n, k) and their log probabilities; of ties among the
        best the lower id comes first."""
        if logits.dtype not in SUFFIXES or logits.stride(1) != 1:
            return self._torch.score(logits, token_ids, k, rows)
        count, vocab = len(token_ids), logits.shape[1]
        assert 0 <= k <= vocab
        token_ids = token_ids.to(torch.int32).contiguous()
        assert not count or 0 <= int(token_ids.min()) <= int(token_ids.max()) < vocab
        logprobs, ranks = torch.empty(count), torch.empty(count, dtype=torch.int32)
        top_ids, top_logprobs = torch.empty((count, k), dtype=torch.int32), torch.empty((count, k))
        table = self._quick if count * vocab < LONG_DRAW else self._long
        table[logits.dtype]["score"](
            logits.data_ptr(),
            logits.stride(0),
            vocab,
            address_of(rows, count, len(logits)),
            count,
            token_ids.data_ptr(),
            k,
            logprobs.data_ptr(),
            ranks.data_ptr(),
            top_ids.data_ptr(),
            top_logprobs.data_ptr(),
        )
        return logprobs, ranks, top_ids, top_logprobs


def address_of(rows: Int32 | None, count: int, num_rows: int) -> int | None:
    """Of the numbers of `count` rows among `num_rows`; None for the rows from 0 on."""
    if rows is None:
        assert count <= num_rows
        return None
    assert len(rows) == count
    assert rows.flags.c_contiguous
    assert not count or 0 <= int(rows.min()) <= int(rows.max()) < num_rows
    return int(rows.ctypes.data)


def kernels_of(functions: dict[str, Callable[..., Any]]) -> dict[torch.dtype, dict[str, Callable[..., Any]]]:
    """dtype -> name -> kernel, so that a call looks nothing up by string formatting."""
    return {dtype: {name: functions[f"{name}_{s}"] for name in NAMES} for dtype, s in SUFFIXES.items()}
