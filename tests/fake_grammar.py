"""A grammar process without a compiler: it speaks the real messages and finds what the test tells it to find.

It accepts every grammar unless `verdict` is replaced. `hold` keeps the answers back until it is set to False.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import zmq
from penstock.scheduler.grammar_messages import (
    CheckGrammar,
    GrammarGreeting,
    GrammarVerdict,
    Outcome,
    decode_to_grammar,
    encode_grammar,
)
from penstock.scheduler.messages import GrammarSpec

LIMIT_S = 10.0


class FakeGrammar:
    """Runs in a thread from `start` to `stop` (which tells nobody: that is how it dies)."""

    def __init__(self, endpoints: list[str], *, incarnation: int = 1) -> None:
        self.endpoints = endpoints
        self.incarnation = incarnation
        self.checks: list[CheckGrammar] = []
        self.forgotten: list[int] = []
        self.verdict: Callable[[GrammarSpec], tuple[Outcome, str]] = lambda spec: ("ok", "")
        self.hold = False
        self.changed = threading.Condition()
        self._held: list[tuple[zmq.Socket, CheckGrammar]] = []
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def specs(self) -> list[GrammarSpec]:
        """What has been asked, in order."""
        return [check.spec for check in self.checks]

    def start(self) -> FakeGrammar:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop = True
        if self._thread.ident:
            self._thread.join(LIMIT_S)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, LIMIT_S), f"waited for {what}"

    def _run(self) -> None:
        context = zmq.Context()
        poller = zmq.Poller()
        sockets = []
        for endpoint in self.endpoints:
            socket = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.IDENTITY, f"grammar:{self.incarnation}".encode())
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, 5)
            socket.connect(endpoint)
            socket.send(encode_grammar(GrammarGreeting(self.incarnation)))
            poller.register(socket, zmq.POLLIN)
            sockets.append(socket)
        while not self._stop:
            for socket, _ in poller.poll(5):
                self._take(socket)
            if not self.hold:
                held, self._held = self._held, []
                for socket, check in held:
                    outcome, message = self.verdict(check.spec)
                    socket.send(
                        encode_grammar(
                            GrammarVerdict(
                                check_id=check.check_id, outcome=outcome, message=message, seconds=0.001
                            )
                        )
                    )
        for socket in sockets:
            socket.close()
        context.term()

    def _take(self, socket: zmq.Socket) -> None:
        message = decode_to_grammar(socket.recv())
        with self.changed:
            if isinstance(message, CheckGrammar):
                self.checks.append(message)
                self._held.append((socket, message))
            else:
                self.forgotten += message.check_ids
            self.changed.notify_all()
