"""Start the real `penstock serve` as a user does, in its own process family, and take it down again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

READY = re.compile(r"ready: (http://\S+)")
START_LIMIT_S = 120.0


@dataclass
class Running:
    """A served model: its base URL, the supervisor's process and the file its stderr goes to."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    def children(self, module: str) -> list[psutil.Process]:
        """Live processes of the family that run `python -m <module>`."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if module in child.cmdline():
                    found.append(child)
        return found

    def engine(self) -> psutil.Process:
        (engine,) = self.children("penstock.engine")
        return engine

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples whose labels match."""
        total = 0.0
        for line in httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines():
            match = re.match(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$", line)
            if match and match[1] == name:
                held = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if all(held.get(key) == value for key, value in labels.items()):
                    total += float(match[3])
        return total

    def load(self) -> dict[str, float]:
        """The first engine's entry of /v1/loads."""
        loads = httpx.get(f"{self.url}/v1/loads", timeout=30).json()
        return loads["loads"][0]

    def stop(self, timeout: float = 30.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


def wait_until(condition, what: str, timeout: float = 30.0) -> None:
    """Poll until `condition()` is true; fail with `what` if it never is."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def serve(*arguments: str, env: dict[str, str] | None = None) -> Iterator[Running]:
    """`penstock serve <arguments>` on a free port, ready to answer; killed with all its children at the end."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr.txt"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "penstock", "serve", "--port", "0", *arguments],
                stdout=stderr,
                stderr=stderr,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        family = psutil.Process(process.pid)
        children: list[psutil.Process] = []
        try:
            url = ""
            deadline = time.monotonic() + START_LIMIT_S
            while not url:
                text = log.read_text(errors="replace")
                match = READY.search(text)
                url = match[1] if match else ""
                assert process.poll() is None, f"the server ended with {process.returncode}:\n{text}"
                assert time.monotonic() < deadline, f"not ready after {START_LIMIT_S} s:\n{text}"
                time.sleep(0.02)
            yield Running(url, process, log)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                children = family.children(recursive=True)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(15)
            for child in [*children, family]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait(10)
