"""KV events: the bytes that vLLM's own classes read and write, and what a consumer sees over real sockets."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch, KVEvent
from penstock.scheduler.kv_publisher import ZmqPublisher, start_publisher
from penstock.scheduler.messages import KVEventsConfig
from simulation import Simulation, make_config, make_request

TIMEOUT_MS = 10_000

# What vLLM 0.32.0's encoder gives for the same batch of its own event classes (and its decoder reads back equal).
RECORDED = bytes.fromhex(
    "93cb41d954fc40200000948ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657391cfbbd9a89fd57b5e7f"
    "b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473920102aa626c6f636b5f73697a6502a76c6f72615f6964"
    "c0a66d656469756da3475055a96c6f72615f6e616d65c0aa65787472615f6b6579739191a674656e616e74a967726f75705f6964"
    "7800b26b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e8ba474797065ab426c6f636b53746f72"
    "6564ac626c6f636b5f68617368657392cfffffffffffffffff05b1706172656e745f626c6f636b5f6861736807a9746f6b656e5f"
    "69647394010203ce00011170aa626c6f636b5f73697a6502a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e61"
    "6d65c0a967726f75705f69647801b26b765f63616368655f737065635f6b696e64ae736c6964696e675f77696e646f77bc6b765f"
    "63616368655f737065635f736c6964696e675f77696e646f77cc8084a474797065ac426c6f636b52656d6f766564ac626c6f636b"
    "5f68617368657391cfffffffffffffffffa66d656469756da3475055a967726f75705f6964780181a474797065b0416c6c426c6f"
    "636b73436c656172656400"
)


def unpack(data: bytes) -> Any:
    """A msgpack decoder of its own, for the types that events are made of."""
    value, end = unpack_at(data, 0)
    assert end == len(data), "bytes left over"
    return value


NUMBERS = {0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD3: ">q"}
SIZED = {0xD9: (">B", "str"), 0xDA: (">H", "str"), 0xDC: (">H", "array"), 0xDE: (">H", "map")}


def unpack_at(data: bytes, at: int) -> tuple[Any, int]:
    code = data[at]
    at += 1
    if code < 0x80:
        return code, at
    if code >= 0xE0:
        return code - 256, at
    if code == 0xC0:
        return None, at
    if code in NUMBERS:
        size = struct.calcsize(NUMBERS[code])
        return struct.unpack_from(NUMBERS[code], data, at)[0], at + size
    if code in SIZED:
        layout, kind = SIZED[code]
        count = struct.unpack_from(layout, data, at)[0]
        at += struct.calcsize(layout)
    elif code < 0x90:
        kind, count = "map", code & 15
    elif code < 0xA0:
        kind, count = "array", code & 15
    else:
        assert code < 0xC0, hex(code)
        kind, count = "str", code & 31
    if kind == "str":
        return data[at : at + count].decode(), at + count
    items = []
    for _ in range(count * (2 if kind == "map" else 1)):
        item, at = unpack_at(data, at)
        items.append(item)
    return (items if kind == "array" else dict(zip(items[::2], items[1::2], strict=True))), at


def stored(**changes: Any) -> BlockStored:
    fields: dict[str, Any] = {
        "block_hashes": [1],
        "parent_block_hash": None,
        "token_ids": [1, 2],
        "block_size": 2,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
    }
    return BlockStored(**(fields | changes))


def test_a_batch_has_the_bytes_that_vllm_writes() -> None:
    root = hashlib.sha256(b"penstock-kv-block\0tenant").digest()
    first = hashlib.sha256(root + np.array([1, 2], "<i4").tobytes()).digest()
    batch = EventBatch(
        1700000000.5,
        [
            stored(
                block_hashes=[int.from_bytes(first[-8:], "big")],
                extra_keys=[("tenant",)],
                group_idx=0,
                kv_cache_spec_kind="full_attention",
            ),
            stored(
                block_hashes=[2**64 - 1, 5],
                parent_block_hash=7,
                token_ids=[1, 2, 3, 70000],
                group_idx=1,
                kv_cache_spec_kind="sliding_window",
                kv_cache_spec_sliding_window=128,
            ),
            BlockRemoved(block_hashes=[2**64 - 1], medium="GPU", group_idx=1),
            AllBlocksCleared(),
        ],
        0,
    )
    assert msgspec.msgpack.encode(batch) == RECORDED


def test_the_recorded_layout_is_a_positional_batch_of_tagged_maps_without_defaults() -> None:
    ts, events, rank = unpack(RECORDED)
    assert (ts, rank) == (1700000000.5, 0)
    assert [event["type"] for event in events] == [
        "BlockStored",
        "BlockStored",
        "BlockRemoved",
        "AllBlocksCleared",
    ]
    assert events[2] == {"type": "BlockRemoved", "block_hashes": [2**64 - 1], "medium": "GPU", "group_idx": 1}
    assert events[3] == {"type": "AllBlocksCleared"}
    assert "extra_keys" not in events[1]
    assert "session_id" not in events[0]
    assert unpack(msgspec.msgpack.encode(EventBatch(1.0, []))) == [1.0, [], None]


class Recorder:
    def __init__(self) -> None:
        self.batches: list[list[KVEvent]] = []

    def publish(self, events: list[KVEvent]) -> None:
        self.batches.append(events)


def record(simulation: Simulation) -> Recorder:
    """Send the simulation's events to a recorder instead."""
    recorder = Recorder()
    assert simulation.scheduler._log is not None
    simulation.scheduler._log._publisher = recorder
    simulation.mirror = None
    return recorder


def test_a_prompt_is_announced_as_one_chain_when_its_step_is_committed() -> None:
    simulation = Simulation(make_config(), events=True)
    recorder = record(simulation)
    simulation.add(make_request(0, range(10), cache_salt="s", max_tokens=1))
    simulation.plan()
    assert recorder.batches == []
    simulation.commit()
    chain = [hashlib.sha256(b"penstock-kv-block\0s").digest()]
    for begin in (0, 4):
        chain.append(hashlib.sha256(chain[-1] + np.arange(begin, begin + 4, dtype="<i4").tobytes()).digest())
    [[event]] = recorder.batches
    assert isinstance(event, BlockStored)
    assert event.block_hashes == [int.from_bytes(digest[-8:], "big") for digest in chain[1:]]
    assert event.parent_block_hash is None
    assert event.token_ids == list(range(8))
    assert event.extra_keys == [("s",), None]
    assert (event.group_idx, event.kv_cache_spec_kind, event.medium) == (0, "full_attention", "GPU")


def test_an_extension_names_its_parent_and_a_flush_clears() -> None:
    simulation = Simulation(make_config(), events=True)
    recorder = record(simulation)
    simulation.add(make_request(0, range(9), max_tokens=1))
    simulation.run()
    simulation.add(make_request(1, range(13), max_tokens=1))
    simulation.run()
    [[first], [second]] = recorder.batches
    assert isinstance(first, BlockStored)
    assert isinstance(second, BlockStored)
    assert second.parent_block_hash == first.block_hashes[-1]
    assert second.token_ids == [8, 9, 10, 11]
    assert second.extra_keys is None
    assert simulation.scheduler.flush_cache() == 3
    assert recorder.batches[2:] == [[AllBlocksCleared()]]


def test_a_flush_that_leaves_held_pages_names_what_it_removed() -> None:
    simulation = Simulation(make_config(), events=True)
    simulation.add(make_request(0, range(9), max_tokens=1))
    simulation.run()
    simulation.add(make_request(1, range(50, 59), max_tokens=9))
    simulation.step()
    recorder = record(simulation)
    assert simulation.scheduler.flush_cache() == 2
    [[event]] = recorder.batches
    assert isinstance(event, BlockRemoved)
    assert len(event.block_hashes) == 2


def test_an_eviction_is_announced_for_its_group() -> None:
    groups = (KVGroup("full", 12), KVGroup("sliding", 6, 8))
    simulation = Simulation(make_config(groups=groups, max_num_batched_tokens=8), events=True)
    for index in range(6):
        simulation.add(make_request(index, range(index * 20, index * 20 + 17), max_tokens=8))
        simulation.run()
    assert simulation.mirror is not None
    assert simulation.mirror.num_events > 10  # the mirror itself asserts that events and tree agree


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def publisher() -> Iterator[ZmqPublisher]:
    config = KVEventsConfig(
        endpoint="tcp://127.0.0.1:0", replay_endpoint="tcp://127.0.0.1:0", topic="kv", buffer_steps=500
    )
    publisher = ZmqPublisher(config, data_parallel_rank=0)
    yield publisher
    publisher.close()


def replay(context: zmq.Context[Any], publisher: ZmqPublisher, first: int) -> list[list[bytes]]:
    """The replay's batches as [topic, seq, payload], after checking frame format and end marker."""
    socket = context.socket(zmq.DEALER)
    socket.connect(publisher.replay_endpoint)
    socket.send_multipart([b"", first.to_bytes(8, "big")])
    batches = []
    while True:
        assert socket.poll(TIMEOUT_MS), "no reply"
        empty, topic, seq, payload = socket.recv_multipart()
        assert empty == b""
        if seq == b"\xff" * 8:
            assert (topic, payload) == (b"", b"")
            return batches
        batches.append([topic, seq, payload])


def test_a_late_subscriber_fills_its_gap_by_replay(
    context: zmq.Context[Any], publisher: ZmqPublisher
) -> None:
    subscriber = context.socket(zmq.SUB)
    subscriber.connect(publisher.endpoint)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"kv")
    sent = 0
    while not subscriber.poll(20):  # the first batches are lost until the subscription has arrived
        publisher.publish([stored(block_hashes=[sent])])
        sent += 1
        assert sent < 400
    live = subscriber.recv_multipart()
    topic, seq, payload = live
    assert topic == b"kv"
    number = int.from_bytes(seq, "big")
    batch = unpack(payload)
    assert batch[1] == [
        {
            "type": "BlockStored",
            "block_hashes": [number],
            "parent_block_hash": None,
            "token_ids": [1, 2],
            "block_size": 2,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
        }
    ]
    assert batch[2] == 0
    everything = replay(context, publisher, 0)
    assert [int.from_bytes(seq, "big") for _, seq, _ in everything] == list(range(len(everything)))
    assert len(everything) > number
    assert everything[number] == live
    assert replay(context, publisher, number) == everything[number:]
    assert replay(context, publisher, 10**6) == []


def test_replay_keeps_no_more_than_its_buffer_and_shows_dropped_batches_as_a_gap(
    context: zmq.Context[Any],
) -> None:
    config = KVEventsConfig(endpoint="tcp://127.0.0.1:0", replay_endpoint="tcp://127.0.0.1:0", buffer_steps=3)
    publisher = ZmqPublisher(config, data_parallel_rank=2)
    try:
        for number in range(6):
            publisher._max_queue_size = 0 if number == 4 else 100
            publisher.publish([stored(block_hashes=[number])])
        seen: list[list[bytes]] = []
        while not seen or seen[-1][1] != (5).to_bytes(8, "big"):
            seen = replay(context, publisher, 0)
        assert [int.from_bytes(seq, "big") for _, seq, _ in seen] == [2, 3, 5]
        assert unpack(seen[-1][2])[2] == 2
    finally:
        publisher.close()


def test_a_malformed_replay_request_is_ignored(context: zmq.Context[Any], publisher: ZmqPublisher) -> None:
    socket = context.socket(zmq.DEALER)
    socket.connect(publisher.replay_endpoint)
    for frames in ([b"x"], [b"", b"way too long for a number"], [b"", b""], [b"", b"1", b"2"]):
        socket.send_multipart(frames)
    publisher.publish([AllBlocksCleared()])
    while not (batches := replay(context, publisher, 0)):
        pass
    assert unpack(batches[0][2])[1] == [{"type": "AllBlocksCleared"}]


def test_close_sends_what_is_queued(context: zmq.Context[Any]) -> None:
    publisher = ZmqPublisher(KVEventsConfig(endpoint="tcp://127.0.0.1:0"))
    subscriber = context.socket(zmq.SUB)
    subscriber.connect(publisher.endpoint)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    while not subscriber.poll(20):
        publisher.publish([AllBlocksCleared()])
    for _ in range(5):
        publisher.publish([AllBlocksCleared()])
    last = publisher._next_seq - 1
    publisher.close()
    publisher.publish([AllBlocksCleared()])
    seq = -1
    while seq != last:
        assert subscriber.poll(TIMEOUT_MS), f"batch {last} never came"
        seq = int.from_bytes(subscriber.recv_multipart()[1], "big")


def test_events_are_off_unless_the_configuration_turns_them_on() -> None:
    assert start_publisher(None) is None
    assert start_publisher(KVEventsConfig(enable_kv_cache_events=False)) is None
    assert start_publisher(KVEventsConfig(publisher="null")) is None


def test_an_endpoint_in_use_is_one_clear_error(publisher: ZmqPublisher) -> None:
    with pytest.raises(ValueError, match=r"--kv-events-config endpoint 'tcp://127.*choose a free address"):
        start_publisher(KVEventsConfig(endpoint=publisher.endpoint))


def test_a_remote_collector_is_connected_to(context: zmq.Context[Any]) -> None:
    collector = context.socket(zmq.SUB)
    port = collector.bind_to_random_port("tcp://127.0.0.1")
    collector.setsockopt(zmq.SUBSCRIBE, b"")
    publisher = ZmqPublisher(KVEventsConfig(endpoint=f"tcp://localhost:{port}"))
    try:
        while not collector.poll(20):
            publisher.publish([AllBlocksCleared()])
    finally:
        publisher.close()


@pytest.mark.parametrize(
    ("endpoint", "rank", "shifted"),
    [
        ("tcp://localhost:7000", 3, "tcp://localhost:7003"),
        ("tcp://localhost:7000", 0, "tcp://localhost:7000"),
    ],
)
def test_each_data_parallel_rank_has_its_own_port(endpoint: str, rank: int, shifted: str) -> None:
    publisher = ZmqPublisher(KVEventsConfig(endpoint=endpoint), data_parallel_rank=rank)
    publisher.close()
    assert publisher.endpoint == shifted
