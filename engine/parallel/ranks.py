"""One rank of a replica: its place, its shard of the model, and what it tells the others and hears from them."""

from __future__ import annotations

from typing import Protocol

import torch

from ...scheduler.plan import StepPlan
from ..bound import Bound
from ..models.config import ModelConfig
from ..new_slot import NewSlot
from .grid import Grid, layers_of
from .group import Group, Pipe, open_store
from .shard import Shard


class Control(Protocol):
    """The sockets between leader and followers."""

    def exchange(self, values: list[int]) -> list[list[int]]:
        """What every rank gave, by rank; all of them call this."""

    def watch(self) -> None:
        """From now on a rank that is lost is the end of the replica, because the others may wait for its tensors."""

    def announce(self, plan: StepPlan, new: list[NewSlot], bound: Bound | None) -> None:
        """Tell the followers what is the next step; `bound` has its drafts, if there are any."""

    def close(self, *, at_once: bool) -> None:
        """End the followers: after the steps that they know of, or at once."""


class Ranks:
    """What runner and start-up need of a grid of more than one."""

    def __init__(self, grid: Grid, rank: int, store: str, control: Control) -> None:
        self.grid = grid
        self.rank = rank
        self.stage, tensor_rank = divmod(rank, grid.tensor)
        self._store = store
        self._control = control
        self._tensor = Group(tensor_rank, grid.tensor)
        self._stages = Group(self.stage, grid.stages)

    @property
    def leads(self) -> bool:
        return self.rank == self.grid.leader

    @property
    def has_head(self) -> bool:
        """The last layer, norm and head are here."""
        return self.stage == self.grid.stages - 1

    def shard(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Shard:
        """This rank's shard of the model."""
        stages = self.grid.stages
        return Shard(
            layers=layers_of(self.stage, stages, config.num_layers),
            first=self.stage == 0,
            last=self.has_head,
            tensor=self._tensor,
            pipe=Pipe(self._stages, config.hidden_size, dtype, device) if stages > 1 else None,
        )

    # -------------------------------------------------------------------------------------------------- start, in order

    def least(self, value: int) -> int:
        """The smallest that any rank gave."""
        return min(values[0] for values in self._control.exchange([value]))

    def total(self, value: int) -> int:
        """The sum of what the ranks gave."""
        return sum(values[0] for values in self._control.exchange([value]))

    def connect(self, device: torch.device) -> None:
        """Every rank has come as far as this: let them find each other."""
        self._control.exchange([])
        self._control.watch()
        store = open_store(self._store, self.grid.size)
        stage, column = divmod(self.rank, self.grid.tensor)
        self._tensor.connect(store, f"tensor-{stage}", device)
        self._stages.connect(store, f"stages-{column}", device)

    # ------------------------------------------------------------------------------------------------------------ steps

    def announce(self, plan: StepPlan, new: list[NewSlot], bound: Bound | None = None) -> None:
        """Called before each step, always by the same thread."""
        if self.leads:
            self._control.announce(plan, new, bound)

    def tell_tokens(self, tokens: torch.Tensor) -> None:
        """The leader sampled these. Stages of a pipeline get them with the plan of the request's next step."""
        if self.grid.stages == 1:
            self._tensor.broadcast(tokens)

    def hear_tokens(self, count: int, device: torch.device) -> torch.Tensor | None:
        """The `count` tokens that the leader sampled in this step; None where they are not needed yet."""
        if self.grid.stages > 1:
            return None
        return self._tensor.broadcast(torch.empty(count, dtype=torch.int32, device=device))

    def close(self, *, at_once: bool = False) -> None:
        self._control.close(at_once=at_once)
