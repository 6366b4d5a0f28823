"""The leader's side of a replica of several ranks: starts the followers' processes, tells them every step, and watches
over them."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from ...scheduler.messages import EngineConfig
from ...scheduler.plan import StepPlan
from ..bound import Bound
from ..errors import ConfigurationError
from ..new_slot import NewSlot
from .grid import Grid, grid_of
from .messages import (
    EXIT_BAD_CONFIGURATION,
    Failed,
    RankConfig,
    Stop,
    ToLeader,
    Values,
    decode_to_leader,
    encode,
    step_of,
)
from .ranks import Ranks

log = logging.getLogger(__name__)

MODULE = "penstock.engine.parallel"
POLL_MS = 100
GRACE_S = 5.0  # to stop after being told so; to hear why another stopped
EXIT_FAILED = 1

Lost = Callable[[str], None]  # hears why the replica cannot go on


def end_process(reason: str) -> None:
    """End this process at once: other ranks and the device may wait for each other for ever, and whoever started this
    process starts the replica again."""
    log.critical("%s: the replica ends", reason)
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


def lead(config: EngineConfig, on_lost: Lost = end_process) -> Ranks:
    """Start the followers, which load their shards meanwhile. Raises OSError if the system cannot."""
    grid = grid_of(config)
    directory = Path(tempfile.mkdtemp(prefix="ranks-", dir=config.runtime_dir))
    store = str(directory / "store")
    return Ranks(grid, grid.leader, store, Followers(config, grid, directory, store, on_lost))


class Followers:
    """Their processes and the sockets to them. All but the watching is done by one thread at a time."""

    def __init__(self, config: EngineConfig, grid: Grid, directory: Path, store: str, on_lost: Lost) -> None:
        self._grid = grid
        self._directory = directory
        self._on_lost = on_lost
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for rank in grid.followers:
                endpoint = f"ipc://{directory}/rank-{rank}"
                self._sockets[rank] = socket = self._context.socket(zmq.PAIR)
                socket.setsockopt(zmq.SNDHWM, 0)
                socket.setsockopt(zmq.LINGER, 0)
                socket.bind(endpoint)
                told = RankConfig(
                    engine=config, rank=rank, endpoint=endpoint, store=store, parent=os.getpid()
                )
                path = directory / f"rank-{rank}.json"
                path.write_bytes(msgspec.json.encode(told))
                # -P: what lies in the current directory must not shadow a package.
                self._processes[rank] = subprocess.Popen(
                    [sys.executable, "-P", "-m", MODULE, str(path)], stdin=subprocess.DEVNULL
                )
        except BaseException:
            self.close(at_once=True)
            raise

    def exchange(self, values: list[int]) -> list[list[int]]:
        """What every rank gave, by rank. Raises ConfigurationError if one cannot work, RuntimeError if one ended."""
        given = {self._grid.leader: values, **{rank: self._hear(rank) for rank in self._grid.followers}}
        everything = [given[rank] for rank in range(self._grid.size)]
        self._send(encode(Values(everything)))
        return everything

    def _hear(self, rank: int) -> list[int]:
        socket = self._sockets[rank]
        while not socket.poll(POLL_MS):
            for other, process in self._processes.items():
                if process.poll() is not None and not self._sockets[other].poll(0):
                    raise RuntimeError(f"rank {other} ended during the start ({ending(process.returncode)})")
        said: ToLeader = decode_to_leader(socket.recv())
        if isinstance(said, Failed):
            raise ConfigurationError(said.message)
        return said.values

    def watch(self) -> None:
        """From now on the end of a process is told to `on_lost`, by a thread of its own."""
        for rank, process in self._processes.items():
            threading.Thread(
                target=self._wait_for, args=(rank, process), name=f"watch-rank-{rank}", daemon=True
            ).start()

    def _wait_for(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        # It has said what is wrong: this process hears of that, unless it waits for a tensor.
        if status == EXIT_BAD_CONFIGURATION:
            self._closing.wait(GRACE_S)
        if not self._closing.is_set():
            self._on_lost(f"rank {rank} ended ({ending(status)})")

    def announce(self, plan: StepPlan, new: list[NewSlot], bound: Bound | None) -> None:
        self._send(encode(step_of(plan, new, bound)))

    def _send(self, frame: bytes) -> None:
        for socket in self._sockets.values():
            socket.send(frame)

    def close(self, *, at_once: bool) -> None:
        """Tell them to stop after the steps that they know of, and kill those that do not; or kill them at once."""
        self._closing.set()
        if not at_once:
            self._send(encode(Stop()))
        for process in self._processes.values():
            try:
                process.wait(0 if at_once else GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for socket in self._sockets.values():
            socket.close()
        self._context.term()
        shutil.rmtree(self._directory, ignore_errors=True)


def ending(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
