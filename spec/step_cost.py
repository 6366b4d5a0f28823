"""How long a step of so many tokens takes, learnt from the steps that ran: what draft lengths are weighed against.

A step of decodes reads all weights whatever the number of tokens, and from some number on it computes. So its time is
no straight line: it is kept at knots, a factor of about 1.4 apart, as logarithms, and between them it is linear in
the logarithm of tokens. A measurement moves the knots beside it, and all of them a little, for what the context grows
or the machine slows down. What was never measured is taken to be cheap, so that it is tried.
"""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np

KNOTS = (1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 90, 128, 181, 256, 362, 512, 724, 1024, 2048, 4096)
FIRST_SLOPE = 1 / 64  # guessed for every token: 64 of them double the time of a step
GAIN = 0.3  # of a measurement, for the knots beside it
COMMON_GAIN = 0.1  # and for all others
CLIP = 0.5  # a step that took e^0.5 times what was expected, or more, counts as that


class StepCost:
    def __init__(self) -> None:
        self._log = np.log1p(FIRST_SLOPE * np.array(KNOTS))
        self._at = [math.log(knot) for knot in KNOTS]
        self._seconds: list[float] = []
        self.num_samples = 0

    @property
    def is_known(self) -> bool:
        """Whether a step was measured."""
        return self.num_samples > 0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step of `num_tokens` took `seconds`; one without a measurement (0) teaches nothing."""
        if seconds <= 0.0 or num_tokens < 1:
            return
        left, share = self._place(num_tokens)
        expected = (1 - share) * self._log[left] + share * self._log[left + 1]
        error = math.log(seconds) - float(expected)
        if self.num_samples == 0:
            self._log += error
        else:
            error = min(max(error, -CLIP), CLIP)
            self._log += COMMON_GAIN * error
            weight = np.array([1 - share, share])
            self._log[left : left + 2] += (GAIN - COMMON_GAIN) * error * weight / float(weight @ weight)
        self.num_samples += 1
        self._seconds = np.exp(np.maximum.accumulate(self._log)).tolist()

    def seconds(self, num_tokens: int) -> float:
        """Of a step of `num_tokens`, never less than of fewer; meaningless before the first measurement."""
        left, share = self._place(num_tokens)
        return (1 - share) * self._seconds[left] + share * self._seconds[left + 1]

    def _place(self, num_tokens: int) -> tuple[int, float]:
        """(knot on the left, how far it is to the next one); beyond the last knot as at it."""
        left = min(bisect_right(KNOTS, num_tokens) - 1, len(KNOTS) - 2)
        share = (math.log(num_tokens) - self._at[left]) / (self._at[left + 1] - self._at[left])
        return left, min(share, 1.0)
