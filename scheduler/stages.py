"""Who decodes in which step when the stages of a pipeline work on several steps at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .arrays import Bool, Int32
from .plan import StepPlan


class Stages:
    """A request's next token depends on its last one, which is known when its step has passed all stages. So the steps in
    flight have different requests, and each takes its share, that there be work for every stage."""

    def __init__(self, num_stages: int, num_slots: int) -> None:
        self._num_stages = num_stages
        self._awaited: Bool = np.zeros(num_slots, np.bool_)  # a step in flight samples for the slot
        self._latest: npt.NDArray[np.int64] = np.full(num_slots, -1, np.int64)  # step that decoded the slot

    def share(self, slots: Int32) -> Int32:
        """Of all `slots` that decode, those of the next step, in order: who has waited longest comes first."""
        free: Int32 = slots[~self._awaited[slots]]
        count = -(-slots.size // self._num_stages)
        if free.size <= count:
            return free
        longest = np.argsort(self._latest[free], kind="stable")[:count]
        return free[np.sort(longest)]

    def planned(self, plan: StepPlan) -> None:
        self._awaited[plan.slots[plan.sample]] = True
        self._latest[plan.slots] = plan.step

    def committed(self, plan: StepPlan) -> None:
        self._awaited[plan.slots[plan.sample]] = False

    def failed(self) -> None:
        """No step is in flight any more."""
        self._awaited[:] = False
