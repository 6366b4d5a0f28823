"""Signals as readable bytes on a descriptor, so that one loop can wait for them and for messages alike."""

from __future__ import annotations

import signal
import socket
from types import FrameType, TracebackType
from typing import Any

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


def ignore(number: int, frame: FrameType | None) -> None:
    """Let the wake-up descriptor speak."""


class Signals:
    """While entered, the watched signals do nothing but arrive here. Main thread only."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._before: dict[signal.Signals, Any] = {}
        self._fd_before = -1

    def __enter__(self) -> Signals:
        self._fd_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, ignore) for number in WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        return self._reader.fileno()

    def take(self) -> list[int]:
        """The numbers of the signals that came since the last call."""
        try:
            return list(self._reader.recv(4096))
        except BlockingIOError:
            return []
