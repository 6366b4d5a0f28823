"""`python -m penstock.engine.parallel CONFIG.json`: one follower, from its shard of the weights to its last step."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

import msgspec
import zmq

from ...scheduler.plan import StepPlan
from ..bound import Bound
from ..malloc import keep_freed_memory
from ..new_slot import NewSlot
from .messages import (
    EXIT_BAD_CONFIGURATION,
    Failed,
    Offer,
    RankConfig,
    Step,
    ToFollower,
    Values,
    decode_to_follower,
    encode,
    plan_of,
)

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
EXIT_FAILED = 1
LINGER_MS = 1000  # for the last word to the leader


class LeaderLink:
    """The follower's socket to the leader."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.connect(endpoint)

    def exchange(self, values: list[int]) -> list[list[int]]:
        self._socket.send(encode(Offer(values)))
        said = self.next()
        if not isinstance(said, Values):
            raise RuntimeError(f"the leader said {type(said).__name__} during the start")
        return said.values

    def next(self) -> ToFollower:
        message: ToFollower = decode_to_follower(self._socket.recv())
        return message

    def fail(self, message: str) -> None:
        self._socket.send(encode(Failed(message)))

    def watch(self) -> None:
        """The kernel does: a follower ends with its leader."""

    def announce(self, plan: StepPlan, new: list[NewSlot], bound: Bound | None) -> None:
        raise AssertionError("only the leader decides what is the next step")

    def close(self, *, at_once: bool = False) -> None:
        self._socket.close()
        self._context.term()


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, however it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(EXIT_FAILED)


def run(told: RankConfig) -> int:
    """Follow the leader until it says stop. Returns the exit status."""
    from ..build import create_runner
    from ..errors import ConfigurationError
    from ..runner import ModelRunner
    from ..step_runner import StepHandle
    from .grid import grid_of
    from .ranks import Ranks

    link = LeaderLink(told.endpoint)
    try:
        runner = create_runner(
            told.engine, ranks=Ranks(grid_of(told.engine), told.rank, told.store, link)
        ).runner
    except ConfigurationError as error:
        link.fail(str(error))
        link.close()
        return EXIT_BAD_CONFIGURATION
    assert isinstance(runner, ModelRunner)
    gc.collect()
    gc.freeze()
    gc.enable()
    launched: SimpleQueue[StepHandle] = SimpleQueue()

    def watch_steps() -> None:
        while True:
            try:
                launched.get().result()
            except BaseException:
                # The other ranks are in the middle of this step: none of them can go on.
                log.critical("a step failed", exc_info=True)
                sys.stderr.flush()
                os._exit(EXIT_FAILED)

    threading.Thread(target=watch_steps, name="steps", daemon=True).start()
    while isinstance(message := link.next(), Step):
        launched.put(runner.start(*plan_of(message)))
    runner.close()
    return 0


def main() -> None:
    told = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=RankConfig)
    die_with_parent(told.parent)
    # The leader says when to stop: until then it may have streams to finish.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(
        level=told.engine.log_level.upper(),
        format=f"%(asctime)s %(levelname)s engine rank {told.rank}: %(message)s",
        stream=sys.stderr,
    )
    gc.disable()
    keep_freed_memory()
    status = run(told)
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
