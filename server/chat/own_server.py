"""How `penstock chat` gets a server of its own: start one on a free port, wait until it is ready, end it with the chat."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TextIO

from ..family.lifeline import die_with_parent

READY = re.compile(rb"ready: (https?://[^\s\x1b]+)")
STOP_LIMIT_S = 30.0
_PACKAGE = __package__.split(".")[0]


class ServerFailed(Exception):
    """The server ended before it was ready; the message holds its last line."""


def serve_command(model: str | None) -> list[str]:
    """The command of a server for `model` (None: the embedded one) on a free port of this machine."""
    return [
        *(sys.executable, "-P", "-m", _PACKAGE, "serve"),
        *([] if model is None else [model]),
        *("--host", "127.0.0.1", "--port", "0"),
    ]


class _Output(threading.Thread):
    """Passes what the server prints through until it is ready, and keeps its last words after that."""

    def __init__(self, process: subprocess.Popen[bytes], show: TextIO) -> None:
        super().__init__(name="server output", daemon=True)
        self.url = ""
        self.settled = threading.Event()  # ready, or ended
        self.last: deque[str] = deque(maxlen=1)
        self._process, self._show = process, show

    def run(self) -> None:
        assert self._process.stdout is not None
        stream = self._process.stdout
        seen = b""
        # Not by lines: a progress bar's ends in a carriage return.
        while data := stream.read1(65536):  # type: ignore[attr-defined]
            if not self.settled.is_set():
                self._show.write(data.decode(errors="replace"))
                self._show.flush()
            seen = (seen + data)[-65536:]
            lines = seen.replace(b"\r", b"\n").split(b"\n")
            self.last.extend(line.decode(errors="replace").strip() for line in lines if line.strip())
            for line in lines[:-1]:
                if not self.url and (match := READY.search(line)):
                    self.url = match[1].decode()
                    self.settled.set()
            seen = lines[-1]
        self.settled.set()


@contextlib.contextmanager
def own_server(command: Sequence[str], show: TextIO, limit_s: float | None = None) -> Iterator[str]:
    """The URL of a server started with `command`, ready; its progress goes to `show`. Raises ServerFailed.

    With `limit_s` it has to be so within that time. It ends with the block: SIGTERM first, as it drains and takes its
    family along, SIGKILL if that takes too long.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C stops an answer, not the server
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    try:
        output = _Output(process, show)
        output.start()
        if not output.settled.wait(limit_s):
            raise ServerFailed(f"the server was not ready after {limit_s:.0f} s")
        if not output.url:
            words = output.last[0] if output.last else "no word"
            raise ServerFailed(f"the server ended with exit code {process.wait()}: {words}")
        yield output.url
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
