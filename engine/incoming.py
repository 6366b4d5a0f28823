"""What front ends have sent to a process of the engine's room, from one socket each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec
import zmq

log = logging.getLogger(__name__)

T = TypeVar("T")


def incoming(sockets: Sequence[zmq.Socket[bytes]], decode: Callable[[bytes], T]) -> Iterator[tuple[int, T]]:
    """Every message that has arrived, with the id of its front end; undecodable ones are logged and dropped."""
    for frontend_id, socket in enumerate(sockets):
        while True:
            try:
                frame = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                message = decode(frame)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                log.warning(
                    "dropped a message of %d bytes from front end %d: %s", len(frame), frontend_id, error
                )
                continue
            yield frontend_id, message
