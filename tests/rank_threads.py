"""All ranks of a replica as threads of the test: real groups and messages, no processes to wait for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from penstock.engine.bound import Bound
from penstock.engine.build import Built, create_runner
from penstock.engine.new_slot import NewSlot
from penstock.engine.parallel.grid import Grid, grid_of
from penstock.engine.parallel.messages import Step, Stop, decode_to_follower, encode, plan_of, step_of
from penstock.engine.parallel.ranks import Ranks
from penstock.engine.runner import ModelRunner
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


def follow(config: EngineConfig, table: Table, rank: int, store: str) -> None:
    try:
        runner = create_runner(
            config, ranks=Ranks(table.grid, rank, store, ThreadControl(table, rank))
        ).runner
        assert isinstance(runner, ModelRunner)
        steps = []
        while isinstance(message := decode_to_follower(table.frames[rank].get()), Step):
            steps.append(runner.start(*plan_of(message)))
        runner.close()
        for step in steps:
            step.result()
    except BaseException as error:
        table.errors.append(error)
        table.barrier.abort()


@contextmanager
def led(config: EngineConfig, folder: Path) -> Iterator[Built]:
    """The leader's runner, while the other ranks that `config` asks for follow it. Raises what a follower raised."""
    grid = grid_of(config)
    table, store = Table(grid), str(folder / "store")
    threads = [
        threading.Thread(target=follow, args=(config, table, rank, store), daemon=True)
        for rank in grid.followers
    ]
    for thread in threads:
        thread.start()
    try:
        built = create_runner(
            config, ranks=Ranks(grid, grid.leader, store, ThreadControl(table, grid.leader))
        )
        yield built
        built.runner.close()
    finally:
        for thread in threads:
            thread.join(60)
        if table.errors:
            raise table.errors[0]
