"""One process of the family: how it is started, how it ends, and when it may be started again."""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .lifeline import die_with_parent

FIRST_BACK_OFF_S = 0.5
LONGEST_BACK_OFF_S = 30.0


@dataclass(frozen=True)
class ChildSpec:
    """What to run. `command` gets the incarnation of this start and returns the arguments to execute."""

    name: str  # as the log calls it
    command: Callable[[int], Sequence[str]]
    pass_fds: tuple[int, ...] = ()


class ChildState(enum.Enum):
    WAITING = "waiting"  # to be started when it is due
    RUNNING = "running"
    GONE = "gone"  # ended, not to be started again


LEGAL = {
    ChildState.WAITING: {ChildState.RUNNING, ChildState.GONE},
    ChildState.RUNNING: {ChildState.WAITING, ChildState.GONE},
    ChildState.GONE: set[ChildState](),
}


class BackOff:
    """Delays between restarts: none, then doubling; at most `limit` restarts within `window_s` seconds."""

    def __init__(self, limit: int, window_s: float) -> None:
        self.limit = limit
        self._window_s = window_s
        self._restarts: deque[float] = deque()

    @property
    def used(self) -> int:
        """Restarts that still count, the latest included."""
        return len(self._restarts)

    def next_delay(self, now: float) -> float | None:
        """Seconds to wait before the restart that this call takes; None if the limit is reached."""
        while self._restarts and self._restarts[0] <= now - self._window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self.limit:
            return None
        before = len(self._restarts)
        delay = min(LONGEST_BACK_OFF_S, FIRST_BACK_OFF_S * 2 ** (before - 1)) if before else 0.0
        self._restarts.append(now + delay)
        return delay


class Child:
    """A process that is to run; `state` follows `LEGAL`."""

    def __init__(self, spec: ChildSpec, back_off: BackOff) -> None:
        self.spec = spec
        self.back_off = back_off
        self.state = ChildState.WAITING
        self.due = 0.0  # monotonic seconds; meaningful while WAITING
        self.incarnation = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it in a session of its own (Ctrl-C is for the supervisor alone), bound to this process's life.

        Raises OSError or SubprocessError if the system cannot.
        """
        self._move(ChildState.RUNNING)
        self._process = None
        self.incarnation = time.time_ns()  # grows over restarts of this process and of its supervisor
        self._process = subprocess.Popen(
            self.spec.command(self.incarnation),
            stdin=subprocess.DEVNULL,
            pass_fds=self.spec.pass_fds,
            start_new_session=True,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )

    def ended(self) -> int | None:
        """The exit status, negative for a signal, of a RUNNING child that has ended; it stays RUNNING until moved."""
        if self.state is not ChildState.RUNNING:
            return None
        return self._process.poll() if self._process is not None else 1

    def wait_until(self, due: float) -> None:
        self._move(ChildState.WAITING)
        self.due = due

    def give_up(self) -> None:
        self._move(ChildState.GONE)

    def terminate(self) -> None:
        """SIGTERM if it runs; if it only waits to be started, it is gone."""
        if self.state is ChildState.WAITING:
            self.give_up()
        elif self.state is ChildState.RUNNING and self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to it and to what it started, if it runs."""
        if self.state is ChildState.RUNNING and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def abandon(self) -> None:
        """SIGKILL if it runs; if it only waits to be started, it is gone."""
        if self.state is ChildState.WAITING:
            self.give_up()
        self.kill()

    def kill_and_wait(self) -> None:
        self.kill()
        if self._process is not None:
            self._process.wait()

    def _move(self, state: ChildState) -> None:
        assert state in LEGAL[self.state], (self.spec.name, self.state, state)
        self.state = state


def cause(status: int) -> str:
    """Why a process ended, from its exit status."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
