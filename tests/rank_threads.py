"""All ranks of a replica as threads of the test: real groups and messages, no processes to wait for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

from late_device import LateDevice, gathered_runner
from penstock.engine.bound import Bound
from penstock.engine.build import Built, create_runner
from penstock.engine.new_slot import NewSlot
from penstock.engine.parallel.grid import Grid, grid_of
from penstock.engine.parallel.messages import Step, Stop, decode_to_follower, encode, plan_of, step_of
from penstock.engine.parallel.ranks import Ranks
from penstock.engine.runner import ModelRunner
from penstock.engine.step_runner import StepHandle
from penstock.scheduler.messages import EngineConfig
from penstock.scheduler.plan import StepPlan


class Table:
    """Where the threads meet."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.barrier = threading.Barrier(grid.size, timeout=60)
        self.given: list[list[int]] = [[] for _ in range(grid.size)]
        self.frames: dict[int, SimpleQueue[bytes]] = {rank: SimpleQueue() for rank in grid.followers}
        self.errors: list[BaseException] = []


class ThreadControl:
    """One rank's seat at the table."""

    def __init__(self, table: Table, rank: int) -> None:
        self.table = table
        self.rank = rank

    def exchange(self, values: list[int]) -> list[list[int]]:
        self.table.given[self.rank] = values
        self.table.barrier.wait()
        given = list(self.table.given)
        self.table.barrier.wait()
        return given

    def watch(self) -> None:
        pass

    def announce(self, plan: StepPlan, new: list[NewSlot], bound: Bound | None) -> None:
        self._send(encode(step_of(plan, new, bound)))

    def close(self, *, at_once: bool) -> None:
        if self.rank == self.table.grid.leader:
            self._send(encode(Stop()))

    def _send(self, frame: bytes) -> None:
        for frames in self.table.frames.values():
            frames.put(frame)


Build: TypeAlias = Callable[[Ranks], AbstractContextManager[Built]]


@contextmanager
def created(config: EngineConfig, ranks: Ranks) -> Iterator[Built]:
    built = create_runner(config, ranks=ranks)
    yield built
    built.runner.close()


def follow(build: Build, table: Table, rank: int, store: str) -> None:
    try:
        with build(Ranks(table.grid, rank, store, ThreadControl(table, rank))) as built:
            assert isinstance(built.runner, ModelRunner)
            steps: deque[StepHandle] = deque()
            while isinstance(message := decode_to_follower(table.frames[rank].get()), Step):
                steps.append(built.runner.start(*plan_of(message)))
                if len(steps) > 2:
                    steps.popleft().result()
            for step in steps:
                step.result()
    except BaseException as error:
        table.errors.append(error)
        table.barrier.abort()


@contextmanager
def led(config: EngineConfig, folder: Path, build: Build | None = None) -> Iterator[Built]:
    """The leader's runner, while the other ranks that `config` asks for follow it. Raises what a follower raised."""
    grid, build = grid_of(config), build or partial(created, config)
    table, store = Table(grid), str(folder / "store")
    threads = [
        threading.Thread(target=follow, args=(build, table, rank, store), name=f"rank-{rank}", daemon=True)
        for rank in grid.followers
    ]
    for thread in threads:
        thread.start()
    try:
        with build(Ranks(grid, grid.leader, store, ThreadControl(table, grid.leader))) as built:
            yield built
    finally:
        for thread in threads:
            thread.join(60)
        if table.errors:
            raise table.errors[0]


@contextmanager
def led_late(path: Path, folder: Path, devices: Sequence[LateDevice], **options: Any) -> Iterator[Built]:
    """As `led`, of ranks that share every layer, each on its own one of the `devices`; `options` as `gathered_runner`
    has them, `recorder` made for each."""
    recorder = options.pop("recorder", lambda: None)

    def build(ranks: Ranks) -> AbstractContextManager[Built]:
        return gathered_runner(path, devices[ranks.rank], ranks=ranks, recorder=recorder(), **options)

    config = EngineConfig(model_dir=str(path), tensor_parallel_size=len(devices))
    with led(config, folder, build) as built:
        yield built
