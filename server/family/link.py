"""The supervisor's side of the ZMQ link: a DEALER to every front end, and sleep until anything happens."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import msgspec
import zmq

from ...scheduler.messages import FamilyStatus, ToSupervisor, decode_to_supervisor, encode

log = logging.getLogger(__name__)

IDENTITY = b"supervisor"


class FamilyLink:
    """DEALER sockets to the front ends, in the order of their ids, and one more descriptor to wake up for."""

    def __init__(self, endpoints: Sequence[str], wakeup_fd: int) -> None:
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._poller.register(wakeup_fd, zmq.POLLIN)
        self._endpoints = endpoints
        self._sockets = [self._connect(endpoint) for endpoint in endpoints]

    def _connect(self, endpoint: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, IDENTITY)
        socket.setsockopt(zmq.LINGER, 200)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        socket.connect(endpoint)
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def reconnect(self, frontend_id: int) -> None:
        """A front end was started anew: what is sent from now on is for the new one alone."""
        old = self._sockets[frontend_id]
        self._poller.unregister(old)
        old.close(linger=0)
        self._sockets[frontend_id] = self._connect(self._endpoints[frontend_id])

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until a message has come, the other descriptor is readable, or the time is over (None: no limit)."""
        self._poller.poll(None if timeout_s is None else max(0, round(timeout_s * 1000) + 1))

    def receive(self) -> Iterator[tuple[int, ToSupervisor]]:
        """Every message that has arrived, with the id of its front end; undecodable ones are logged and dropped."""
        for frontend_id, socket in enumerate(self._sockets):
            while True:
                try:
                    frame = socket.recv(zmq.NOBLOCK)
                except zmq.Again:
                    break
                try:
                    message = decode_to_supervisor(frame)
                except msgspec.DecodeError as error:
                    log.warning("dropped a message of front end %d: %s", frontend_id, error)
                    continue
                yield frontend_id, message

    def send(self, frontend_id: int, message: FamilyStatus) -> None:
        self._sockets[frontend_id].send(encode(message))

    def broadcast(self, message: FamilyStatus) -> None:
        for frontend_id in range(len(self._sockets)):
            self.send(frontend_id, message)

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()
        self._context.term()
