"""How KV events leave the process: a ZMQ PUB socket with a replay ROUTER beside it, served by one thread.

Wire format (as vLLM's): a batch is `[topic, seq (8 bytes, big endian), msgpack(EventBatch)]`, seq counting from 0. A
consumer that sees a gap sends `[b"", first seq]` to the replay socket and gets `[b"", topic, seq, payload]` for each
batch still buffered, then `[b"", b"", seq -1, b""]`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque

import msgspec
import zmq

from .kv_events import EventBatch, KVEvent
from .messages import KVEventsConfig

log = logging.getLogger(__name__)

END_SEQ = (-1).to_bytes(8, "big", signed=True)
_LINGER_MS = 500


def start_publisher(config: KVEventsConfig | None, data_parallel_rank: int = 0) -> ZmqPublisher | None:
    """The publisher that a `--kv-events-config` asks for; None where events are off."""
    if config is None or not config.enable_kv_cache_events or config.publisher == "null":
        return None
    return ZmqPublisher(config, data_parallel_rank)


class ZmqPublisher:
    """Publishes batches in order without ever blocking the caller; idle, it sleeps.

    A batch that finds `max_queue_size` others unsent is dropped, and its sequence number with it: consumers see a
    gap that replay cannot fill and know that they must start anew. `endpoint` and `replay_endpoint` are what was
    bound (a port 0 resolved).

    Raises ValueError when an endpoint cannot be opened.
    """

    def __init__(self, config: KVEventsConfig, data_parallel_rank: int = 0) -> None:
        self._rank = data_parallel_rank
        self._topic = config.topic.encode()
        self._max_queue_size = config.max_queue_size
        self._queue: deque[tuple[int, float, list[KVEvent]]] = deque()
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_steps)
        self._encoder = msgspec.msgpack.Encoder()
        self._next_seq = 0
        self._num_dropped = 0
        self._stopping = False
        self._context = zmq.Context()
        try:
            self._pub = self._context.socket(zmq.PUB)
            self._pub.set_hwm(config.hwm)
            self.endpoint = _open(self._pub, "endpoint", config.endpoint, data_parallel_rank)
            self._replay: zmq.Socket[bytes] | None = None
            self.replay_endpoint: str | None = None
            if config.replay_endpoint is not None:
                self._replay = self._context.socket(zmq.ROUTER)
                # One whole replay fits a client's queue; a client that does not read has its replay cut short.
                self._replay.sndhwm = config.buffer_steps + 16
                self._replay.router_mandatory = 1
                self.replay_endpoint = _open(
                    self._replay, "replay_endpoint", config.replay_endpoint, data_parallel_rank, bind=True
                )
        except ValueError:
            self._context.destroy(linger=0)
            raise
        self._wake = os.eventfd(0)
        self._thread = threading.Thread(target=self._serve, name="kv-events", daemon=True)
        self._thread.start()

    def publish(self, events: list[KVEvent]) -> None:
        """Queue one batch; the list is the publisher's from now on. Nothing happens once it is closed."""
        if self._stopping:
            return
        seq = self._next_seq
        self._next_seq += 1
        if len(self._queue) >= self._max_queue_size:
            if not self._num_dropped:
                log.warning(
                    "KV events: %d batches are unsent (max_queue_size), dropping new ones: consumers will see a gap",
                    self._max_queue_size,
                )
            self._num_dropped += 1
            return
        self._num_dropped = 0
        self._queue.append((seq, time.time(), events))
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Send what is queued, then close the sockets."""
        if self._stopping:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)
        self._context.destroy(linger=_LINGER_MS)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        if self._replay is not None:
            poller.register(self._replay, zmq.POLLIN)
        while not (self._stopping and not self._queue):
            ready = {source for source, _ in poller.poll()}
            try:
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                    self._send_queued()
                if self._replay is not None and self._replay in ready:
                    self._answer(self._replay)
            except (zmq.ZMQError, msgspec.MsgspecError) as error:
                log.error("KV events: %s", error)

    def _send_queued(self) -> None:
        while self._queue:
            seq, ts, events = self._queue.popleft()
            payload = self._encoder.encode(EventBatch(ts, events, self._rank))
            self._buffer.append((seq, payload))
            self._pub.send_multipart((self._topic, seq.to_bytes(8, "big"), payload))

    def _answer(self, replay: zmq.Socket[bytes]) -> None:
        frames = replay.recv_multipart()
        if len(frames) != 3 or frames[1] or not 1 <= len(frames[2]) <= 8:
            log.warning("KV events: a replay request of %d frames is not [b'', seq]", len(frames) - 1)
            return
        client, first = frames[0], int.from_bytes(frames[2], "big")
        try:
            for seq, payload in self._buffer:
                if seq >= first:
                    reply = (client, b"", self._topic, seq.to_bytes(8, "big"), payload)
                    replay.send_multipart(reply, zmq.NOBLOCK)
            replay.send_multipart((client, b"", b"", END_SEQ, b""), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.warning("KV events: a replay was cut short: %s", error)


def _open(socket: zmq.Socket[bytes], name: str, endpoint: str, rank: int, bind: bool = False) -> str:
    """Bind or connect `socket`; returns the endpoint in use.

    Wildcards, IPv6, ipc, inproc and loopback addresses are bound; any other host is a collector to connect to.
    """
    endpoint = _offset_port(endpoint, rank)
    loopback = endpoint.startswith("tcp://127.")
    try:
        if (
            bind
            or loopback
            or "*" in endpoint
            or "::" in endpoint
            or endpoint.startswith(("ipc:", "inproc:"))
        ):
            socket.bind(endpoint)
            return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise ValueError(
            f"--kv-events-config {name} {endpoint!r} cannot be opened ({error}): choose a free address"
        ) from None
    return endpoint


def _offset_port(endpoint: str, rank: int) -> str:
    """Each data-parallel rank has its own port: the given one plus the rank."""
    if not rank:
        return endpoint
    if not endpoint.startswith("tcp://"):
        return f"{endpoint}_dp{rank}"
    base, _, port = endpoint.rpartition(":")
    return f"{base}:{int(port) + rank}" if port.isdigit() and int(port) else endpoint
