"""The front end's one ROUTER socket: frames from peers to whoever talks with their kind, and frames to peers.

A peer's kind is what stands before the first colon of its identity: `engine`, `grammar`, `supervisor`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import zmq

log = logging.getLogger(__name__)

MAX_MESSAGES_AT_ONCE = 64


class Router:
    """Lives in the event loop's own thread."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._receivers: dict[bytes, Callable[[bytes, bytes], None]] = {}
        self._after: list[Callable[[], None]] = []

    def listen(self, kind: bytes, receive: Callable[[bytes, bytes], None]) -> None:
        """`receive` gets every message of a peer of this kind: its identity and the frame, not yet decoded."""
        self._receivers[kind] = receive

    def after_messages(self, call: Callable[[], None]) -> None:
        """Call it whenever everything that had come has been received."""
        self._after.append(call)

    def open(self) -> None:
        """Bind and start listening, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        socket = self._socket
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 200)
        socket.bind(self._endpoint)
        self._loop.add_reader(self._descriptor(), self._receive)
        self._loop.call_soon(self._receive)

    def close(self) -> None:
        self._loop.remove_reader(self._descriptor())
        self._socket.close()
        self._context.term()

    @property
    def closed(self) -> bool:
        return self._socket.closed

    def send(self, identity: bytes, frame: bytes) -> bool:
        """False if the peer is not there."""
        try:
            self._socket.send_multipart([identity, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        else:
            return True
        finally:
            # Sending, also in vain, may swallow the edge on which the reader waits (ZMQ_FD is edge-triggered).
            events = self._socket.getsockopt(zmq.EVENTS)
            assert isinstance(events, int)
            if events & zmq.POLLIN:
                self._loop.call_soon(self._receive)

    def _descriptor(self) -> int:
        descriptor = self._socket.getsockopt(zmq.FD)
        assert isinstance(descriptor, int)
        return descriptor

    def _receive(self) -> None:
        """Everything that has come; after many messages the event loop gets its turn first."""
        if self._socket.closed:
            return
        for _ in range(MAX_MESSAGES_AT_ONCE):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._hand_over(frames)
        else:
            self._loop.call_soon(self._receive)
        for call in self._after:
            call()

    def _hand_over(self, frames: list[bytes]) -> None:
        if len(frames) != 2:
            log.warning("dropped a message of %d frames", len(frames))
            return
        identity, frame = frames
        receive = self._receivers.get(identity.partition(b":")[0])
        if receive is None:
            log.warning("dropped a message of %d bytes from %r, a stranger", len(frame), identity)
            return
        try:
            receive(identity, frame)
        except Exception:
            log.exception("a message of %d bytes from %r could not be used", len(frame), identity)
