"""How long a step will take: a model of its cost, learnt from the steps that ran.

Two costs, because a step is bound by one of two things. A step of decodes alone reads all weights for a few rows; one
with prefill in it computes. Where both are known, a step takes the longer of the two: up to a point prefill rides along
for nothing. Each cost is a sum of parts that grow with what is in the step, as in SGLang's and vLLM-Ascend's predictors
of chunk sizes (linear in tokens, quadratic in the context), but nothing is profiled beforehand: the coefficients are
followed online, by an extended Kalman filter over their logarithms. So they are positive whatever is measured, errors
count relative to the step, and a machine that becomes slower moves all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .arrays import Int32
from .plan import StepPlan

Float64 = npt.NDArray[np.float64]

NOISE = 0.1  # relative deviation of one measured step from its cost
COMMON_DRIFT = 0.03  # what the machine's speed may change from one step to the next, relative
OWN_DRIFT = 0.01  # what one part may change beside the others
UNCERTAINTY = 0.7  # of one part when nothing is known of it but a guess: about a factor of two
CLIP = 2.0  # deviations; a measurement further away moves the parts as if it were this far: the machine was taken away


@dataclass(slots=True)
class StepContents:
    """What a step's time depends on. `attended` counts (query, key) pairs; a decode has one query and one per draft."""

    decode_tokens: int = 0
    decode_attended: int = 0
    prefill_tokens: int = 0
    prefill_attended: float = 0.0

    @classmethod
    def of(cls, plan: StepPlan, drafted: Int32 | None = None) -> StepContents:
        """What `plan` asks for, or did, once it is known how many tokens each row `drafted` (rows,)."""
        num_decodes = plan.num_decode_rows
        begins = plan.starts[:num_decodes].astype(np.int64)
        decode_tokens, decode_attended = num_decodes, int(begins.sum()) + num_decodes
        if plan.drafts is not None:
            drafts = (plan.drafts if drafted is None else drafted)[:num_decodes].astype(np.int64)
            decode_tokens += int(drafts.sum())
            decode_attended += int((drafts * (begins + 1) + drafts * (drafts + 1) // 2).sum())
        if num_decodes == plan.slots.size:
            return cls(decode_tokens, decode_attended)
        starts, lens = plan.starts[num_decodes:].astype(np.float64), plan.lens[num_decodes:]
        attended = float((lens * (starts + (lens + 1) / 2)).sum())
        return cls(decode_tokens, decode_attended, int(lens.sum()), attended)


class PositiveCost:
    """A sum of parts, each a positive coefficient (seconds) times an amount, fitted to what is measured.

    `guess` says how the parts compare before anything is known; the first measurement says how large they are.
    Source: the extended Kalman filter (Anderson and Moore, Optimal Filtering, 1979, section 8.2) with the state
    z = log(coefficients), a random walk with one step common to all parts and one of each part's own, and the
    observation log(seconds) = log(sum(exp(z) * amounts)). Innovations are clipped as by Huber.
    """

    def __init__(self, guess: Sequence[float]) -> None:
        self._log: Float64 = np.log(np.array(guess, np.float64))
        self._spread: Float64 = np.eye(len(guess)) * UNCERTAINTY**2
        self._drift: Float64 = (
            np.full(self._spread.shape, COMMON_DRIFT**2) + np.eye(len(guess)) * OWN_DRIFT**2
        )
        self.num_samples = 0
        self.coefficients: list[float] = list(guess)

    def predict(self, amounts: Sequence[float]) -> float:
        """Seconds for these amounts; meaningless before the first sample."""
        return sum(each * amount for each, amount in zip(self.coefficients, amounts, strict=True))

    def observe(self, amounts: Sequence[float], seconds: float) -> None:
        """Take in that a step with these amounts took `seconds` (positive)."""
        predicted = self.predict(amounts)
        error = math.log(seconds / predicted)
        if self.num_samples == 0:
            self._log += error
        else:
            shares = np.array(self.coefficients) * amounts / predicted  # the gradient; they sum to 1
            self._spread += self._drift
            cross = self._spread @ shares  # covariance of the parts with the prediction
            variance = float(shares @ cross) + NOISE**2
            bound = CLIP * math.sqrt(variance)
            self._log += cross * (min(max(error, -bound), bound) / variance)
            self._spread -= np.outer(cross, cross) / variance
            # A part that no step of late has shown is as uncertain as at first, never more.
            excess = np.diagonal(self._spread) / UNCERTAINTY**2
            if excess.max() > 1.0:
                shrink = 1.0 / np.sqrt(np.maximum(excess, 1.0))
                self._spread *= np.outer(shrink, shrink)
        self.num_samples += 1
        self.coefficients = np.exp(self._log).tolist()


class StepTimeModel:
    """Predicts seconds of device time; `observe` every step that was committed. Deterministic, has no clock."""

    def __init__(self) -> None:
        # In units of one token's work: what a step costs in itself, a decode, a key that a decode reads, a token of
        # prefill, a pair that it attends to.
        self._decode = PositiveCost([16.0, 1.0, 1 / 4096])
        self._mixed = PositiveCost([16.0, 1.0, 1 / 4096, 1.0, 1 / 8192])

    @property
    def knows_prefill(self) -> bool:
        """Whether a step with prefill was measured."""
        return self._mixed.num_samples > 0

    @property
    def knows_decode(self) -> bool:
        """Whether a step of decodes alone was measured."""
        return self._decode.num_samples > 0

    def observe(self, contents: StepContents, seconds: float) -> None:
        """Take in a step's time on the device; one without a measurement (0) teaches nothing."""
        if seconds <= 0.0:
            return
        if contents.prefill_tokens:
            self._mixed.observe(_amounts(contents), seconds)
        else:
            self._decode.observe(_amounts(contents)[:3], seconds)

    def decode_seconds(self, contents: StepContents) -> float:
        """Of the decodes in `contents` as a step of their own; 0 before one was measured."""
        if not self.knows_decode:
            return 0.0
        return self._decode.predict(_amounts(contents)[:3])

    def prefill_begin_seconds(self, contents: StepContents) -> float:
        """Of a step that computes, before the first token of prefill is in it."""
        return self._mixed.predict((*_amounts(contents)[:3], 0.0, 0.0))

    def predict(self, contents: StepContents) -> float:
        """Seconds of a step; 0 if no such step was measured."""
        decode = self.decode_seconds(contents)
        if not contents.prefill_tokens or not self.knows_prefill:
            return decode
        return max(decode, self._mixed.predict(_amounts(contents)))

    def chunk_seconds(self, start: int, length: int) -> float:
        """What a chunk of prefill adds to a step that computes."""
        token, pair = self._mixed.coefficients[3:]
        return length * (token + pair * (start + (length + 1) / 2))

    def chunk_within(self, seconds: float, start: int) -> int:
        """The tokens at position `start` and after it that `chunk_seconds` says take no more than `seconds`."""
        if seconds <= 0.0:
            return 0
        token, pair = self._mixed.coefficients[3:]
        linear = token + pair * (start + 0.5)
        return int(2 * seconds / (linear + math.sqrt(linear * linear + 2 * pair * seconds)))


def _amounts(contents: StepContents) -> tuple[float, float, float, float, float]:
    return (
        1.0,
        contents.decode_tokens,
        contents.decode_attended,
        contents.prefill_tokens,
        contents.prefill_attended,
    )
