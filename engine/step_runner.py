"""What the engine's loop needs of a runner, whatever kind of model it runs."""

from __future__ import annotations

from typing import Protocol

from ..scheduler.plan import StepPlan, StepResult


class StepHandle(Protocol):
    """A launched step."""

    def wait(self, timeout_s: float) -> bool:
        """Whether there is an outcome, after at most `timeout_s`."""

    def result(self) -> StepResult:
        """Wait for the outcome; raises what went wrong in the step."""


class StepRunner(Protocol):
    """`num_slots` is how many slots the device has room for."""

    num_slots: int

    def launch(self, plan: StepPlan) -> StepHandle:
        """Start a step and return at once; its `result()` waits for it and raises what went wrong in it."""

    def close(self) -> None:
        """Let the running step end, then give threads back."""
