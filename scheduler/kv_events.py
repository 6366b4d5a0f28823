"""What happened to cached blocks: the events that routers follow, in the schema that vLLM publishes.

An `EventBatch` is a positional array, an event a map tagged by `type`; fields at their default are left out. Block
hashes are chained: sha256 of the parent's digest and the block's int32 little-endian token ids, the salt mixed into
the root; the low 64 bits are published, as consumers expect integers.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any, Protocol, TypeAlias

import numpy as np
from msgspec import Struct

from .groups import KVGroup
from .radix import ABSENT, Node

MEDIUM_GPU = "GPU"
SPEC_KINDS = {"full": "full_attention", "sliding": "sliding_window"}
_LOW_64_BITS = (1 << 64) - 1


class BlockStored(Struct, tag="BlockStored", omit_defaults=True, kw_only=True):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None


class BlockRemoved(Struct, tag="BlockRemoved", omit_defaults=True, kw_only=True):
    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


class AllBlocksCleared(Struct, tag="AllBlocksCleared"):
    pass


KVEvent: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(Struct, array_like=True, omit_defaults=True):
    ts: float  # seconds since the epoch
    events: list[KVEvent]
    data_parallel_rank: int | None = None


class KVEventPublisher(Protocol):
    """Where events go; must not block."""

    def publish(self, events: list[KVEvent]) -> None: ...


def root_digest(salt: str) -> bytes:
    """The digest that the first block of a salt is chained to."""
    return hashlib.sha256(b"penstock-kv-block\0" + salt.encode()).digest()


def block_digest(parent: bytes, tokens: bytes) -> bytes:
    """The digest of a block of int32 little-endian token ids after `parent`."""
    return hashlib.sha256(parent + tokens).digest()


def block_hash(digest: bytes) -> int:
    """The published form: the low 64 bits."""
    return int.from_bytes(digest, "big") & _LOW_64_BITS


class KVEventLog:
    """Collects what the radix tree reports and publishes it at commits.

    A block is announced when the step that computes it is committed, and only if it is still cached then; its
    removal is announced only if it was. So a consumer that applies the events in order knows exactly the blocks that
    committed steps computed.
    """

    def __init__(self, groups: tuple[KVGroup, ...], page_size: int, publisher: KVEventPublisher) -> None:
        self._groups = groups
        self._page_size = page_size
        self._publisher = publisher
        self._events: list[KVEvent] = []
        self._fresh: list[tuple[Node, int]] = []  # stored since the newest step was planned
        self._pending: deque[tuple[int, list[tuple[Node, int]]]] = deque()
        self._newest = -1

    def stored(self, node: Node, group: int) -> None:
        """A page entered the tree; the step being planned (or an earlier one) computes it."""
        if not node.announced >> group & 1:
            self._fresh.append((node, group))

    def removed(self, node: Node, group: int) -> None:
        """A page left the tree."""
        if not node.announced >> group & 1:
            return
        node.announced &= ~(1 << group)
        removed = [block_hash(node.digest)]
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockRemoved) and last.group_idx == group:
            last.block_hashes += removed
        else:
            self._events.append(BlockRemoved(block_hashes=removed, medium=MEDIUM_GPU, group_idx=group))

    def planned(self, step: int) -> None:
        """What was stored up to here is computed once `step` is."""
        self._pending.append((step, self._fresh))
        self._fresh = []
        self._newest = step

    def committed(self, step: int) -> None:
        """Announce what the steps up to `step` computed, and publish."""
        while self._pending and self._pending[0][0] <= step:
            self._announce(self._pending.popleft()[1])
        if self._newest <= step:
            self._announce(self._fresh)
            self._fresh = []
        self._publish()

    def flush(self, cleared: bool) -> None:
        """The cache was flushed outside of any step; `cleared` if nothing at all is left in it."""
        if cleared:
            self._pending.clear()
            self._fresh = []
            self._events = [AllBlocksCleared()]
        self._publish()

    def _publish(self) -> None:
        if self._events:
            self._publisher.publish(self._events)
            self._events = []

    def _announce(self, stored: list[tuple[Node, int]]) -> None:
        last: Node | None = None
        for node, group in stored:
            if not node.alive or node.pages[group] == ABSENT or node.announced >> group & 1:
                continue
            node.announced |= 1 << group
            event = self._events[-1] if self._events else None
            tokens = np.frombuffer(node.key, "<i4").tolist()
            if isinstance(event, BlockStored) and node.parent is last and event.group_idx == group:
                event.block_hashes.append(block_hash(self._digest(node)))
                event.token_ids += tokens
                if event.extra_keys is not None:
                    event.extra_keys.append(None)
            else:
                self._events.append(self._new_event(node, group, tokens))
            last = node

    def _new_event(self, node: Node, group: int, tokens: list[int]) -> BlockStored:
        assert node.parent is not None
        spec = self._groups[group]
        at_root = node.parent.parent is None
        return BlockStored(
            block_hashes=[block_hash(self._digest(node))],
            parent_block_hash=None if at_root else block_hash(self._digest(node.parent)),
            token_ids=tokens,
            block_size=self._page_size,
            lora_id=None,
            medium=MEDIUM_GPU,
            lora_name=None,
            extra_keys=[(node.salt,)] if at_root and node.salt else None,
            group_idx=group,
            kv_cache_spec_kind=SPEC_KINDS[spec.kind],
            kv_cache_spec_sliding_window=spec.window,
        )

    def _digest(self, node: Node) -> bytes:
        chain = []
        while not node.digest and node.parent is not None:
            chain.append(node)
            node = node.parent
        digest = node.digest or root_digest(node.salt)
        for each in reversed(chain):
            digest = each.digest = block_digest(digest, each.key)
        return digest
