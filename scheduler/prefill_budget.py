"""How much prefill a step may take: tokens up to the step's bound and, while anything decodes, time within the target.

Stall-free batching (Agrawal et al., Sarathi-Serve, OSDI 2024, section 4) computes prompts in chunks beside the decodes,
within a budget of tokens that is profiled once for a latency target. Here the budget is seconds, and what a token
costs is predicted for each step (`step_time.py`), as it differs with the context, the batch and the machine.
"""

from __future__ import annotations

import math

import numpy as np

from .decode_rows import DecodeRows
from .plan import StepPlan, StepResult
from .step_time import StepContents, StepTimeModel

# Every step takes this much of a prompt, and cuts no chunk shorter: up to about as many rows beside the decodes cost no
# more than reading the weights does, on a CPU as on a GPU.
MIN_CHUNK = 16
# A step of decodes may take this many times as long for the prefill in it, even where that misses the target. So
# neither side starves: streams keep half of the speed they have undisturbed, prompts get half of the machine.
MAX_SLOWDOWN = 2.0
# After so many steps with both a step of decodes alone shows anew what streams have undisturbed; without it nobody would
# know under steady load. A hundredth of the prefill is a small price.
ALONE_EVERY = 100
# Of steps of decodes alone in a row, so many are learnt from, then one in eight: they are many and much alike.
ALONE_LEARNT = 16
DRAFTED_GAIN = 0.1  # weight of the newest step in the share of possible drafts that are verified


class PrefillBudget:
    """What is left for prefill in the step under construction. Without a `model` time is no matter."""

    def __init__(self, tokens: int, model: StepTimeModel | None = None, seconds: float = math.inf) -> None:
        self.tokens = tokens
        self._model = model
        self._seconds = seconds
        self._granted = MIN_CHUNK  # tokens that are free of the target

    @property
    def spent(self) -> bool:
        """Whether nothing more is to be had, for whichever prompt."""
        return self.tokens <= 0 or (self._model is not None and self._seconds <= 0.0 and self._granted <= 0)

    def chunk(self, start: int, wanted: int) -> int:
        """How many of the `wanted` tokens from position `start` on the step may take; 0 for none."""
        length = min(wanted, self.tokens)
        if self._model is None or length <= 0:
            return max(0, length)
        within = self._model.chunk_within(self._seconds, start)
        if within >= length:
            return length
        return min(length, within if within >= MIN_CHUNK else self._granted)

    def take(self, start: int, length: int) -> None:
        """A chunk of `length` tokens is planned."""
        self.tokens -= length
        self._granted = max(0, self._granted - length)
        if self._model is not None:
            self._seconds -= self._model.chunk_seconds(start, length)


class StallFree:
    """Cuts prefill so that a step with decodes is predicted to take no longer than `target_s` (seconds; 0 = off)."""

    def __init__(self, target_s: float) -> None:
        self.model = StepTimeModel()
        self.target_s = target_s
        self._mixed_in_a_row = ALONE_EVERY  # planned
        self._alone_in_a_row = 0  # committed
        self._share_drafted = 0.0  # of the drafts that rows might have verified of late

    def budget(self, max_tokens: int, decodes: DecodeRows) -> PrefillBudget:
        """For a step of at most `max_tokens` tokens that has these decodes."""
        tokens = max_tokens - decodes.num_tokens
        if not self.target_s or not decodes.slots.size:
            return PrefillBudget(tokens)
        if self._mixed_in_a_row >= ALONE_EVERY:
            return PrefillBudget(0)
        if not self.model.knows_prefill:
            return PrefillBudget(tokens, self.model, 0.0)
        contents = self._expected(decodes)
        begin = self.model.prefill_begin_seconds(contents)
        allowed = max(self.target_s, MAX_SLOWDOWN * self.model.decode_seconds(contents))
        return PrefillBudget(tokens, self.model, allowed - begin)

    def _expected(self, decodes: DecodeRows) -> StepContents:
        """Rows seldom verify all the drafts they may: what counts is the share that they did of late."""
        num_rows = decodes.slots.size
        attended = int(decodes.starts.sum(dtype=np.int64)) + num_rows
        per_row = self._share_drafted * (decodes.num_tokens / num_rows - 1)
        return StepContents(round(num_rows * (1 + per_row)), round(attended * (1 + per_row)))

    def expect(self, plan: StepPlan) -> float:
        """Seconds that this step, which is next, is predicted to take; 0 without prefill or a prediction."""
        if not self.target_s:
            return 0.0
        if plan.num_decode_rows == plan.slots.size:
            self._mixed_in_a_row = 0
            return 0.0
        self._mixed_in_a_row += plan.num_decode_rows > 0
        return self.model.predict(StepContents.of(plan))

    def observe(self, plan: StepPlan, result: StepResult) -> None:
        """What the step did and how long it took."""
        if not self.target_s:
            return
        if plan.drafts is not None and result.drafted is not None:
            share = float(result.drafted.sum() / max(1, plan.drafts.sum()))
            self._share_drafted += DRAFTED_GAIN * (share - self._share_drafted)
        alone = plan.num_decode_rows == plan.slots.size
        self._alone_in_a_row = self._alone_in_a_row + 1 if alone else 0
        if self._alone_in_a_row <= ALONE_LEARNT or self._alone_in_a_row % 8 == 0:
            self.model.observe(StepContents.of(plan, result.drafted), result.device_seconds)
