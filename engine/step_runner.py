"""What the engine's loop needs of a runner, whatever kind of model it runs."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from ..scheduler.plan import StepPlan, StepResult
from .device_thread import Promise

StepHandle: TypeAlias = Promise[StepResult]


class StepRunner(Protocol):
    """`num_slots` is how many slots the device has room for."""

    num_slots: int

    def launch(self, plan: StepPlan) -> StepHandle:
        """Start a step and return at once; its `result()` waits for it and raises what went wrong in it."""

    def close(self) -> None:
        """Let the running step end, then give threads back."""
