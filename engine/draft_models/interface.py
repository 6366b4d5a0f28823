"""What speculation asks of a drafter that is a model."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from ...scheduler.arrays import Int32
from ...scheduler.plan import StepPlan
from ...spec.interface import Drafter
from ...spec.verify import Drafts


class DeviceDrafter(Drafter, ABC):
    """Drafts as many tokens as it is asked for, each in a pass over all rows. It sees the target's steps go by.

    `reads_last`: the target's final states are wanted for every token of a prompt. `seconds` is the device's time of
    the latest `draft`.
    """

    reads_last: bool
    seconds: float

    @abstractmethod
    def pass_seconds(self, num_rows: int) -> float:
        """What one token more in the longest draft of so many rows costs; 0 while that is not known."""

    @abstractmethod
    def keep_up(self, slots: Int32, positions: Int32, lens: Int32) -> None:
        """Before each step: its decoding `slots` (n,) go on from `positions`, with at most lens[i] tokens."""

    @abstractmethod
    def draft(self, slots: Int32, positions: Int32, lens: Int32) -> Drafts:
        """lens[i] tokens for row i, whose newest one is at positions[i]."""

    @abstractmethod
    def computed(self, plan: StepPlan, num_decodes: int, hidden: torch.Tensor) -> None:
        """The target's pass of `plan`, whose first `num_decodes` rows decode, gave `hidden` (T, hidden_size), or
        (R, hidden_size) where it was asked for some tokens alone."""
