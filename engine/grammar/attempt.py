"""One grammar compiled in a forked child that may be killed: limited in time and memory.

The child shares the loaded libraries and the vocabulary with its parent, so that it starts in milliseconds. What it
finds comes back through a pipe. What the compiler prints goes to a file in memory, for it tells how a child died.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import msgspec
from msgspec import Struct

from ...scheduler.grammar_messages import Outcome
from ...scheduler.messages import GrammarSpec
from .compile import GrammarError

PR_SET_PDEATHSIG = 1
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Ordinary grammars take milliseconds and answer a waiting client; what takes longer yields to everything else.
SLOW_AFTER_S = 1.0
SLOW_NICE = 19
MAX_NOISE_BYTES = 65_536
ANSWER_FD = 0  # in the child


@dataclass(frozen=True)
class Limits:
    """Of one compile. Seconds of wall clock; bytes of memory beyond what the process has already."""

    timeout_s: float
    memory_bytes: int


class Verdict(Struct, frozen=True):
    """What came of it: `message` is one line unless the outcome is `ok`; `seconds` from start to end."""

    outcome: Outcome
    message: str = ""
    seconds: float = 0.0


class Attempt:
    """A child at work. SIGCHLD tells of its end; `fd` (None when all is said) is readable when it has a verdict."""

    def __init__(
        self, compile_spec: Callable[[GrammarSpec], object], spec: GrammarSpec, limits: Limits
    ) -> None:
        """Forks. `compile_spec` raises `GrammarError` or `MemoryError`. Raises OSError if the system cannot fork."""
        self._limits = limits
        self._answer = b""
        self._timed_out = False
        self._status: int | None = None
        prctl = ctypes.CDLL(None).prctl
        parent = os.getpid()
        self._noise = os.memfd_create("grammar-noise")
        self.fd: int | None
        self.fd, theirs = os.pipe()
        self._began = time.monotonic()
        self._slow_at: float | None = self._began + SLOW_AFTER_S
        try:
            self.pid = os.fork()
        except OSError:
            self._close()
            os.close(theirs)
            raise
        if self.pid == 0:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            run_child(compile_spec, spec, limits, parent=parent, answer_fd=theirs, noise_fd=self._noise)
        os.close(theirs)
        os.set_blocking(self.fd, False)

    @property
    def due(self) -> float | None:
        """When `press` is to be called, in monotonic seconds; None if only its end is awaited."""
        if self._timed_out:
            return None
        deadline = self._began + self._limits.timeout_s
        return deadline if self._slow_at is None else min(self._slow_at, deadline)

    def press(self, now: float) -> None:
        """What is slow gets the lowest priority; what is out of time is killed, its verdict follows its end."""
        if self._slow_at is not None and now >= self._slow_at:
            self._slow_at = None
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self.pid, SLOW_NICE)
        if now >= self._began + self._limits.timeout_s and not self._timed_out:
            self._timed_out = True
            os.kill(self.pid, signal.SIGKILL)

    def verdict(self) -> Verdict | None:
        """None while there is none. The child itself may take a little longer to leave: see `has_left`."""
        self._read()
        if self.fd is None and self._answer:
            found = msgspec.json.decode(self._answer, type=Verdict)
            return Verdict(found.outcome, found.message, time.monotonic() - self._began)
        if not self.has_left():
            return None
        self._read()  # it may have answered meanwhile
        return self.verdict() if self._answer else self._obituary(time.monotonic() - self._began)

    def has_left(self) -> bool:
        """Whether the child has ended; nothing is left of it then but what is remembered here."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    def close(self) -> None:
        """Kill the child if it has not left, and close what is open here."""
        if not self.has_left():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._close()

    def _read(self) -> None:
        if self.fd is None:
            return
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.fd, 65_536):
                self._answer += piece
            os.close(self.fd)
            self.fd = None

    def _close(self) -> None:
        os.close(self._noise)
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def _obituary(self, seconds: float) -> Verdict:
        """Of a child that ended without a word."""
        assert self._status is not None
        if self._timed_out:
            return Verdict(
                "timeout",
                f"compiling it took longer than {self._limits.timeout_s:g} s (--grammar-compile-timeout)",
                seconds,
            )
        if b"bad_alloc" in os.pread(self._noise, MAX_NOISE_BYTES, 0):
            return Verdict("memory", out_of_memory(self._limits), seconds)
        return Verdict("crash", f"compiling it crashed the compiler ({cause(self._status)})", seconds)


def run_child(
    compile_spec: Callable[[GrammarSpec], object],
    spec: GrammarSpec,
    limits: Limits,
    *,
    parent: int,
    answer_fd: int,
    noise_fd: int,
) -> NoReturn:
    """What the child does. It never returns into its parent's code, and keeps nothing of its parent's open."""
    status = 1
    try:
        if os.getppid() != parent:
            os._exit(1)  # the parent died before the kernel had been told to end us with it
        confine(answer_fd, noise_fd)
        soft, hard = limit_memory(limits.memory_bytes)
        try:
            compile_spec(spec)
            verdict = Verdict("ok")
        except GrammarError as error:
            verdict = Verdict("refused", str(error))
        except MemoryError:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))  # room enough to say so
            verdict = Verdict("memory", out_of_memory(limits))
        os.write(ANSWER_FD, msgspec.json.encode(verdict))
        os.close(
            ANSWER_FD
        )  # giving the memory back takes longer than many a grammar: nobody need wait for that
        status = 0
    finally:
        os._exit(status)  # not the way out of the parent, whose sockets and buffers lie in this memory too


def confine(answer_fd: int, noise_fd: int) -> None:
    """Signals as a new process has them, no core files, and no descriptors but for the answer and for noise."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    gc.disable()
    os.dup2(answer_fd, ANSWER_FD)
    os.dup2(noise_fd, 1)
    os.dup2(noise_fd, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_NOISE_BYTES, MAX_NOISE_BYTES))


def limit_memory(more_bytes: int) -> tuple[int, int]:
    """Allow so many bytes of address space beyond what is in use; returns the limits that were in force before."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb") as statm:
        in_use = int(statm.read().split()[0]) * PAGE_BYTES
    limit = in_use + more_bytes
    if before[0] != resource.RLIM_INFINITY:
        limit = min(limit, before[0])
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    return before


def out_of_memory(limits: Limits) -> str:
    return f"compiling it took more than {limits.memory_bytes >> 20} MiB of memory (--grammar-compile-memory)"


def cause(status: int) -> str:
    """Why a process ended, from its exit status."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
