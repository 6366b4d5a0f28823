"""The real grammar process over real sockets, with the ends of its front ends in the test's hand."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
import zmq
from penstock.scheduler.grammar_messages import (
    CheckGrammar,
    ForgetChecks,
    GrammarConfig,
    GrammarGreeting,
    GrammarVerdict,
    decode_from_grammar,
    encode_grammar,
)
from penstock.scheduler.messages import GrammarSpec
from penstock.server.model_files import DEMO_DIR

LIMIT_S = 60.0
INCARNATION = 7


class FrontEnd:
    """One front end's ROUTER. Verdicts are kept in the order in which they came."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.bind(endpoint)
        self._peer = b""
        self._last_id = 0
        self.greetings: list[GrammarGreeting] = []
        self.verdicts: dict[int, GrammarVerdict] = {}

    def greeted(self) -> GrammarGreeting:
        while not self.greetings:
            self._take()
        return self.greetings.pop()

    def ask(self, kind: Any, text: str = "") -> int:
        self._last_id += 1
        self.send(encode_grammar(CheckGrammar(self._last_id, GrammarSpec(kind, text))))
        return self._last_id

    def forget(self, *check_ids: int) -> None:
        self.send(encode_grammar(ForgetChecks(list(check_ids))))

    def send(self, frame: bytes) -> None:
        self._socket.send_multipart([self._peer, frame])

    def verdict(self, check_id: int) -> GrammarVerdict:
        while check_id not in self.verdicts:
            self._take()
        return self.verdicts[check_id]

    def check(self, kind: Any, text: str = "") -> GrammarVerdict:
        return self.verdict(self.ask(kind, text))

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def _take(self) -> None:
        assert self._socket.poll(int(LIMIT_S * 1000)), "nothing came from the grammar process"
        self._peer, frame = self._socket.recv_multipart()
        message = decode_from_grammar(frame)
        if isinstance(message, GrammarGreeting):
            self.greetings.append(message)
        else:
            self.verdicts[message.check_id] = message


@dataclass
class GrammarProcess:
    """`frontends` are connected and greeted."""

    process: subprocess.Popen[bytes]
    endpoints: list[str]
    log: Path
    frontends: list[FrontEnd] = field(default_factory=list)
    frozen: list[psutil.Process] = field(default_factory=list)

    def children(self) -> list[psutil.Process]:
        """Grammars that are being compiled."""
        return psutil.Process(self.process.pid).children()

    def ask_and_freeze(self, frontend: FrontEnd, regex: str) -> tuple[int, psutil.Process]:
        """A check, and the child that compiles it, stopped: it works on it as long as the test likes."""
        wait_until(lambda: not self.children(), "earlier children to leave")
        check_id = frontend.ask("regex", regex)
        wait_until(lambda: bool(self.children()), "a child")
        (child,) = self.children()
        self.frozen.append(child)
        wait_until(lambda: child.num_fds() <= 3, "the child to be confined")
        child.suspend()
        return check_id, child

    def restart_frontend(self, index: int) -> FrontEnd:
        self.frontends[index].close()
        self.frontends[index] = FrontEnd(self.endpoints[index])
        return self.frontends[index]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {LIMIT_S} s for {what}"
        time.sleep(0.002)


@contextlib.contextmanager
def grammar_process(*, num_frontends: int = 1, **options: Any) -> Iterator[GrammarProcess]:
    """`options` go into its configuration. It serves the demonstration model."""
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        directory = Path(folder)
        endpoints = [f"ipc://{directory}/frontend-{index}" for index in range(num_frontends)]
        config = GrammarConfig(
            **{
                "incarnation": INCARNATION,
                "frontends": endpoints,
                "model_dir": str(DEMO_DIR),
                "tokenizer_dir": str(DEMO_DIR),
                "compile_timeout_s": 30.0,
                "compile_memory_bytes": 256 << 20,
                **options,
            }
        )
        path = directory / "grammar.json"
        path.write_bytes(msgspec.json.encode(config))
        log = directory / "stderr"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "penstock.engine.grammar", str(path)],
                stderr=stderr,
                start_new_session=True,
            )
        running = GrammarProcess(process, endpoints, log, [FrontEnd(endpoint) for endpoint in endpoints])
        family = [psutil.Process(process.pid)]
        try:
            for frontend in running.frontends:
                assert frontend.greeted().incarnation == INCARNATION
            yield running
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                family += family[0].children(recursive=True)
            for one in (*reversed(family), *running.frozen):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGKILL)
            process.wait()
            for frontend in running.frontends:
                frontend.close()
