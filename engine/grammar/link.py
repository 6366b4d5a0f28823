"""The grammar process's side of the ZMQ link: a DEALER to every front end that notices when one comes or goes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence

import zmq
from zmq.utils.monitor import recv_monitor_message

from ...scheduler.grammar_messages import (
    GrammarGreeting,
    GrammarVerdict,
    ToGrammar,
    decode_to_grammar,
    encode_grammar,
)
from ..incoming import incoming

log = logging.getLogger(__name__)


class GrammarLink:
    """Greets each front end whenever its connection is made, so that nothing has to be sent in between."""

    def __init__(self, endpoints: Sequence[str], incarnation: int) -> None:
        self._incarnation = incarnation
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wake_reader, self.wake_writer = os.pipe()
        for descriptor in (self._wake_reader, self.wake_writer):
            os.set_blocking(descriptor, False)
        self._sockets: list[zmq.Socket[bytes]] = []
        self._monitors: list[zmq.Socket[bytes]] = []
        for endpoint in endpoints:
            socket = self._context.socket(zmq.DEALER)
            socket.setsockopt(zmq.IDENTITY, f"grammar:{incarnation}".encode())
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.LINGER, 200)
            socket.setsockopt(zmq.RECONNECT_IVL, 20)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
            self._monitors.append(
                socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            )
            socket.connect(endpoint)
            self._sockets.append(socket)

    def wait(self, timeout_s: float | None, descriptors: Iterable[int]) -> None:
        """Sleep until anything has come, `wake_writer` was written to, or the time is over (None: no limit)."""
        poller = zmq.Poller()
        poller.register(self._wake_reader, zmq.POLLIN)
        for socket in (*self._sockets, *self._monitors):
            poller.register(socket, zmq.POLLIN)
        for descriptor in descriptors:
            poller.register(descriptor, zmq.POLLIN)
        poller.poll(None if timeout_s is None else max(0, round(timeout_s * 1000) + 1))

    def take_wakes(self) -> bytes:
        """What was written to `wake_writer` since the last call: numbers of signals."""
        try:
            return os.read(self._wake_reader, 4096)
        except BlockingIOError:
            return b""

    def take_gone(self) -> list[int]:
        """The ids of front ends whose connection has ended since the last call. Those that have come are greeted."""
        gone = []
        for frontend_id, monitor in enumerate(self._monitors):
            while monitor.poll(0):
                event = recv_monitor_message(monitor)["event"]
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._send(frontend_id, GrammarGreeting(self._incarnation))
                elif event == zmq.EVENT_DISCONNECTED:
                    gone.append(frontend_id)
        return gone

    def receive(self) -> Iterator[tuple[int, ToGrammar]]:
        """Every message that has arrived, with the id of its front end; undecodable ones are logged and dropped."""
        return incoming(self._sockets, decode_to_grammar)

    def tell(self, frontend_id: int, verdict: GrammarVerdict) -> None:
        self._send(frontend_id, verdict)

    def close(self) -> None:
        for socket, monitor in zip(self._sockets, self._monitors, strict=True):
            socket.disable_monitor()
            monitor.close()
            socket.close()
        self._context.term()
        os.close(self._wake_reader)
        os.close(self.wake_writer)

    def _send(self, frontend_id: int, message: GrammarGreeting | GrammarVerdict) -> None:
        self._sockets[frontend_id].send(encode_grammar(message))
