"""How long a step of so many tokens takes, learnt from the steps that ran: what draft lengths are weighed against.

A step of decodes reads all weights whatever the number of tokens, and from some number on it computes. So its time is
no straight line: it is kept at knots, a factor of about 1.4 apart, as logarithms, and between them it is linear in
the logarithm of tokens. A measurement moves the knots beside it, and all of them a little, for what the context grows
or the machine slows down. What was never measured is taken to be cheap, so that it is tried.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate

KNOTS = (1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 90, 128, 181, 256, 362, 512, 724, 1024, 2048, 4096)
FIRST_SLOPE = 1 / 64  # guessed for every token: 64 of them double the time of a step
GAIN = 0.3  # of a measurement, for the knots beside it
COMMON_GAIN = 0.1  # and for all others
CLIP = 0.5  # a step that took e^0.5 times what was expected, or more, counts as that
LEARNT = 16  # of steps in a row of as many tokens; then one in eight, they are much alike


class StepCost:
    """Deterministic, has no clock."""

    def __init__(self) -> None:
        self._log = [math.log1p(FIRST_SLOPE * knot) for knot in KNOTS]
        self._rising = self._log  # what is told of them: none less than one before it
        self._common = 0.0  # to be added to all of them
        self._at = [math.log(knot) for knot in KNOTS]
        self._places: dict[int, tuple[int, float]] = {}  # found out once for each number of tokens
        self._known = False
        self._latest = (0, 0)  # tokens of the latest step, and how many like it came in a row

    @property
    def is_known(self) -> bool:
        """Whether a step was measured."""
        return self._known

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step of `num_tokens` took `seconds`; one without a measurement (0) teaches nothing."""
        if seconds <= 0.0 or num_tokens < 1:
            return
        tokens, count = self._latest
        self._latest = (num_tokens, count + 1 if tokens == num_tokens else 0)
        if self._latest[1] > LEARNT and self._latest[1] % 8:
            return
        left, share = self._place(num_tokens)
        expected = self._common + (1 - share) * self._log[left] + share * self._log[left + 1]
        error = math.log(seconds) - expected
        if not self._known:
            self._known = True
            self._common += error
            return
        error = min(max(error, -CLIP), CLIP)
        self._common += COMMON_GAIN * error
        own = (GAIN - COMMON_GAIN) * error / ((1 - share) ** 2 + share**2)
        self._log[left] += own * (1 - share)
        self._log[left + 1] += own * share
        self._rising = list(accumulate(self._log, max))

    def seconds(self, num_tokens: int) -> float:
        """Of a step of `num_tokens`, never less than of fewer; meaningless before the first measurement."""
        left, share = self._places.get(num_tokens) or self._place(num_tokens)
        return math.exp(self._common + (1 - share) * self._rising[left] + share * self._rising[left + 1])

    def _place(self, num_tokens: int) -> tuple[int, float]:
        """(knot on the left, how far it is to the next one); beyond the last knot as at it."""
        left = min(bisect_right(KNOTS, num_tokens) - 1, len(KNOTS) - 2)
        share = (math.log(num_tokens) - self._at[left]) / (self._at[left + 1] - self._at[left])
        place = self._places[num_tokens] = left, min(share, 1.0)
        return place
