"""What is done with logits after the forward pass; one implementation per back end, found as `Ops.sampling`.

n rows of logits over a vocabulary of V tokens; a slot is where a request keeps its parameters. Logits may be of any
float dtype and are left as they are unless a docstring says "in place".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Int32 = npt.NDArray[np.int32]
Float64 = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How each slot draws. Tensors over slots on the device of the logits; arrays over slots on the host say the part
    of it that a back end may steer by without waiting for the device."""

    temperature: torch.Tensor  # float32; 0 takes the most likely token
    top_k: torch.Tensor  # int32; 0 keeps all
    top_p: torch.Tensor  # float32; 1 keeps all
    min_p: torch.Tensor  # float32; 0 keeps all
    greedy: Flags  # temperature is 0
    truncated: Flags  # top-k or top-p, and not greedy

    def __post_init__(self) -> None:
        assert self.top_k.dtype == torch.int32
        assert self.temperature.dtype == self.top_p.dtype == self.min_p.dtype == torch.float32


@dataclass(frozen=True, slots=True)
class Penalties:
    """What penalised slots lose, float32 tensors over slots, and which tokens: a row for each of those slots."""

    repetition: torch.Tensor
    frequency: torch.Tensor
    presence: torch.Tensor
    output_counts: torch.Tensor  # (rows, V) int32: how often each token came
    prompt_has: torch.Tensor  # (rows, V) bool

    def __post_init__(self) -> None:
        assert self.output_counts.dtype == torch.int32
        assert self.prompt_has.dtype == torch.bool
        assert self.repetition.dtype == self.frequency.dtype == self.presence.dtype == torch.float32


class Sampling(Protocol):
    def argmax(self, logits: torch.Tensor) -> torch.Tensor:
        """(n, V) -> (n,) int32: the first of the largest."""

    def sample(
        self,
        logits: torch.Tensor,
        how: SamplingParameters,
        slots: Int32,
        uniform: Float64,
        rows: Int32 | None = None,
    ) -> torch.Tensor:
        """One token for each of `slots` (n,), drawn from its row of logits: (n,) int32.

        rows (n,) says which row of logits is whose, None that row i is slot i's. uniform (n,) in [0, 1) decides: by
        the inverse CDF, in the order of ids, over what top-k leaves, top-p of that, and min-p (as a share of the most
        likely token). Truncation is by threshold, ties with the last one kept being kept. -inf is never drawn, unless
        all is: then token 0. A row's token does not depend on the other rows.
        """

    def penalise(self, logits: torch.Tensor, penalties: Penalties, slots: Int32, count_rows: Int32) -> None:
        """logits (n, V) float32 of `slots` (n,), in place: repetition (of prompt and output), frequency, presence.
        count_rows (n,) are their rows of counts."""

    def score(
        self, logits: torch.Tensor, token_ids: torch.Tensor, k: int, rows: Int32 | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """How likely token_ids (n,) were in their rows of logits (`rows` (n,), or row i for token i).

        Returns float32 log probabilities (n,), int32 ranks from 1 (n,), the k best ids int32 (n, k), more likely
        first, and their float32 log probabilities. k is at most V.
        """
