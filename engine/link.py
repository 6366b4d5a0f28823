"""The engine's side of the ZMQ link: one DEALER to every front end, messages in and out, never blocking on a slow peer."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

import zmq

from ..scheduler.messages import ToEngine, ToFrontEnd, decode_to_engine, encode
from .incoming import incoming

log = logging.getLogger(__name__)

WAKES_AT_ONCE = 4096  # bytes read from the pipe of `wake` calls


class FrontEndLink:
    """DEALER sockets to the front ends, in the order of their ids.

    Sending queues without limit: what a front end may be owed is bounded by the requests it submitted, and dropping
    a token would corrupt a stream. A front end that died reconnects at the same endpoint; what was queued for its
    predecessor is ignored by it.
    """

    def __init__(self, endpoints: Sequence[str], identity: str) -> None:
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)
        self._poller.register(self._wake_reader, zmq.POLLIN)
        self._sockets: list[zmq.Socket[bytes]] = []
        for endpoint in endpoints:
            socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
            socket.setsockopt(zmq.IDENTITY, identity.encode())
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.LINGER, 200)
            socket.setsockopt(zmq.RECONNECT_IVL, 20)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
            socket.connect(endpoint)
            self._poller.register(socket, zmq.POLLIN)
            self._sockets.append(socket)

    @property
    def num_frontends(self) -> int:
        return len(self._sockets)

    def wait(self, timeout_ms: int) -> None:
        """Sleep until a message has come, `wake` was called or `timeout_ms` is over."""
        if any(ready == self._wake_reader for ready, _ in self._poller.poll(timeout_ms)):
            os.read(self._wake_reader, WAKES_AT_ONCE)

    def wake(self) -> None:
        """End the present `wait`, or the next one; may be called from a signal handler and from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_writer, b"!")

    def receive(self) -> Iterator[tuple[int, ToEngine]]:
        """Every message that has arrived, with the id of the front end it came from; undecodable ones are dropped."""
        return incoming(self._sockets, decode_to_engine)

    def send(self, frontend_id: int, message: ToFrontEnd) -> None:
        self._sockets[frontend_id].send(encode(message), copy=True)

    def broadcast(self, message: ToFrontEnd) -> None:
        frame = encode(message)
        for socket in self._sockets:
            socket.send(frame)

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()
        self._context.term()
        os.close(self._wake_reader)
        os.close(self._wake_writer)
