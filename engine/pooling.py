"""From the last layer's states of whole prompts to what their requests asked for: embeddings or the scores of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ..kernels.staged import on_device
from ..scheduler.messages import PoolingParams
from ..scheduler.plan import StepPlan
from .pooling_config import Activation, Mode, Purpose

Vector: TypeAlias = npt.NDArray[np.float32]

SMALLEST_NORM = 1e-12


class Pooler:
    """`logits` takes the states that the model's head classifies by: of first tokens (encoders) or last ones."""

    def __init__(
        self, purpose: Purpose, logits: Callable[[torch.Tensor], torch.Tensor], *, causal: bool
    ) -> None:
        self._purpose = purpose
        self._logits = logits
        self._classified: Mode = "last" if causal else "cls"

    def pool(
        self, hidden: torch.Tensor, spans: Sequence[tuple[int, int]], params: Sequence[PoolingParams]
    ) -> list[Vector]:
        """What was asked of each prompt, float32 on the host.

        `hidden` (T, hidden_size) are states of the last layer. Each prompt's own lie at first .. end-1 of them; where
        only its last token counts, earlier ones may be missing.
        """
        states = self.states(hidden, spans, params)
        return self.vectors([each.cpu().numpy() for each in states], params)

    def states(
        self, hidden: torch.Tensor, spans: Sequence[tuple[int, int]], params: Sequence[PoolingParams]
    ) -> list[torch.Tensor]:
        """The device's part of `pool`: float32 (prompts, n) of each task that is asked for."""
        found = []
        for task, rows in rows_of_tasks(params):
            mode = self._purpose.mode if task == "embed" else self._classified
            states = gather(hidden, [spans[row] for row in rows], mode)
            if task == "classify":
                states = self._logits(states)
            found.append(states.float())
        return found

    def vectors(self, states: Sequence[Vector], params: Sequence[PoolingParams]) -> list[Vector]:
        """The host's part of `pool`, from what `states` gave."""
        vectors: dict[int, Vector] = {}
        for (_, rows), found in zip(rows_of_tasks(params), states, strict=True):
            for row, values in zip(rows, found, strict=True):
                vectors[row] = self._finish(values, params[row])
        return [vectors[row] for row in range(len(params))]

    def _finish(self, values: Vector, params: PoolingParams) -> Vector:
        if params.task == "classify":
            return probabilities(values, self._purpose.activation) if params.activation else values
        if params.dimensions:
            values = values[: params.dimensions]
        normalize = self._purpose.normalize if params.normalize is None else params.normalize
        return unit_length(values) if normalize else values


class PoolingSlots:
    """Which slots hold a prompt to be pooled, and where it ends."""

    def __init__(self) -> None:
        self._wanted: dict[
            int, tuple[int, PoolingParams]
        ] = {}  # slot -> (tokens of the prompt, what is wanted)

    def write(self, slot: int, num_tokens: int, params: PoolingParams | None) -> None:
        """The request in `slot` is this one from now on; None for one that is continued."""
        if params is not None:
            self._wanted[slot] = (num_tokens, params)
        else:
            self._wanted.pop(slot, None)

    def ended(self, plan: StepPlan) -> list[tuple[int, PoolingParams]]:
        """The rows whose last chunk the plan computes. Decodes are none, so plain decode steps cost nothing."""
        if not self._wanted:
            return []
        found = []
        for row in range(plan.num_decode_rows, len(plan.slots)):
            num_tokens, params = self._wanted.get(int(plan.slots[row]), (0, None))
            if params is not None and int(plan.starts[row] + plan.lens[row]) == num_tokens:
                found.append((row, params))
        return found


def rows_of_tasks(params: Sequence[PoolingParams]) -> list[tuple[str, list[int]]]:
    """Which prompts want what, task by task."""
    tasks = ("embed", "classify")
    rows = [(task, [row for row, each in enumerate(params) if each.task == task]) for task in tasks]
    return [(task, found) for task, found in rows if found]


def gather(hidden: torch.Tensor, spans: Sequence[tuple[int, int]], mode: Mode) -> torch.Tensor:
    """(prompts, hidden_size): one state for each span of tokens, means and sums in float32."""
    if mode in ("cls", "last"):
        places = [first if mode == "cls" else end - 1 for first, end in spans]
        return hidden.index_select(0, on_device(np.array(places, np.int64), hidden.device))
    return torch.stack([reduce(hidden[first:end].float(), mode) for first, end in spans])


def reduce(states: torch.Tensor, mode: Mode) -> torch.Tensor:
    """(n, hidden_size) float32 -> (hidden_size,)."""
    count = len(states)
    weighted: torch.Tensor
    match mode:
        case "mean":
            return states.mean(0)
        case "max":
            return states.amax(0)
        case "mean_sqrt_len":
            weighted = states.sum(0) / count**0.5
            return weighted
        case "weightedmean":  # SGPT (arXiv:2202.08904 §3): later tokens weigh more
            weights = torch.arange(1, count + 1, dtype=states.dtype, device=states.device)[:, None]
            weighted = (states * weights).sum(0) / weights.sum()
            return weighted
        case _:
            raise AssertionError(f"{mode} takes the state of one token")


def unit_length(values: Vector) -> Vector:
    """(n,) float32 -> the same direction, Euclidean norm 1."""
    norm = max(float(np.linalg.norm(values)), SMALLEST_NORM)
    return np.divide(values, norm, dtype=np.float32)


def probabilities(values: Vector, activation: Activation) -> Vector:
    """(labels,) float32 -> the same, through the activation; computed in float64."""
    if activation == "none":
        return values
    wide = values.astype(np.float64)
    shares = 1 / (1 + np.exp(-wide)) if activation == "sigmoid" else np.exp(wide - wide.max())
    return np.divide(shares, 1 if activation == "sigmoid" else shares.sum()).astype(np.float32)
