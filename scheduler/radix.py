"""Which pages hold the KV of which token prefix: a radix tree whose edges are whole pages of token ids.

A node is one page of tokens below its parent; it names the page that caches it in each KV group (-1: not cached
there). Trees are separate per salt. Eviction is least recently used, through one heap per eviction order with lazy
deletion, so that evicting k pages costs O(k log n):

- Groups of kind `full` need every page of a prefix, so only leaves may go. A node takes its pages of all groups along.
  The heap is keyed by the first full group's page; a node enters it when it is an unheld leaf: at its last release,
  or when its last child goes.
- In a `sliding` group any unheld page may go by itself. A node without pages stays while it has children.

An entry is stale when its page left the tree, found a holder, got children or was used since; stale entries are
skipped when popped, and a heap that outgrows its pool is rebuilt.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from .arrays import Int32
from .groups import KVGroup
from .pages import PagePool

ABSENT = -1
_PAGE_BITS = 32


class Node:
    """One page of tokens. `depth` counts pages from the root, which is depth 0 and has an empty key."""

    __slots__ = ("alive", "announced", "children", "depth", "digest", "key", "pages", "parent", "salt")

    def __init__(self, parent: Node | None, key: bytes, num_groups: int, salt: str) -> None:
        self.parent = parent
        self.key = key
        self.children: dict[bytes, Node] = {}
        self.depth: int = parent.depth + 1 if parent else 0
        self.pages = [ABSENT] * num_groups
        self.alive = True  # attached to its tree
        self.salt = salt
        self.digest = b""  # chained block hash, filled in by the event log
        self.announced = 0  # bit g: a BlockStored of group g was published


class TreeLog(Protocol):
    """Who is told of changes (KV events)."""

    def stored(self, node: Node, group: int) -> None: ...
    def removed(self, node: Node, group: int) -> None: ...


class RadixCache:
    """The trees over the pools of all KV groups. `page_size` in tokens; keys are int32 little-endian bytes."""

    def __init__(
        self, groups: tuple[KVGroup, ...], pools: list[PagePool], page_size: int, log: TreeLog | None = None
    ) -> None:
        self.groups = groups
        self.pools = pools
        self.page_bytes = 4 * page_size
        self.log = log
        self.roots: dict[str, Node] = {}
        self.num_evicted = 0
        self._owners: list[list[Node | None]] = [[None] * pool.num_pages for pool in pools]
        self._heaps: list[list[int]] = [[] for _ in pools]
        self._clock = 0
        full = [index for index, group in enumerate(groups) if group.kind == "full"]
        self.anchor: int | None = full[0] if full else None
        self._sliding = [index for index, group in enumerate(groups) if group.kind == "sliding"]

    # ------------------------------------------------------------------------------------------------------ reading

    def walk(self, salt: str, data: bytes, num_pages: int, hint: Node | None) -> Node | None:
        """The deepest node matching the first `num_pages` pages of `data`, going on from `hint` where it still lives.

        None when nothing of that salt is cached. O(pages matched beyond the hint).
        """
        node = hint
        while node is not None and not (node.alive and node.depth <= num_pages):
            node = node.parent
        if node is None:
            node = self.roots.get(salt)
            if node is None:
                return None
        size = self.page_bytes
        for start in range(node.depth * size, num_pages * size, size):
            child = node.children.get(data[start : start + size])
            if child is None:
                break
            node = child
        return node

    def path(self, node: Node) -> list[Node]:
        """The nodes from below the root down to `node`."""
        nodes = []
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    def nodes(self) -> Iterator[Node]:
        """Every node of every tree, roots excluded."""
        stack = [child for root in self.roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            yield node

    # ---------------------------------------------------------------------------------------------------- inserting

    def extend(
        self, node: Node | None, salt: str, data: bytes, num_pages: int, rows: list[Int32], firsts: list[int]
    ) -> tuple[Node, bool]:
        """Enter a running request's pages below `node`, up to `num_pages` pages of `data`.

        rows[g][i] is its page for index i in group g, held from index firsts[g] on. Where the tree already has an
        unheld page for the same tokens, the request's takes its place; where that page is held, entering stops.
        Returns the deepest node reached and whether it stopped.
        """
        node = self._start(node, salt)
        begin, size = node.depth, self.page_bytes
        pages = [row[begin:num_pages].tolist() for row in rows]
        groups = range(len(rows))
        all_held = max(firsts) <= begin
        for index in range(begin, num_pages):
            key = data[index * size : (index + 1) * size]
            child = node.children.get(key)
            mine = groups if all_held else [group for group in groups if index >= firsts[group]]
            if child is None:
                child = self._attach(node, key)
            elif mine:
                if self._held(child):
                    return node, True
                for group in mine:
                    self._remove_page(child, group)
            for group in mine:
                self._set_page(child, group, pages[group][index - begin])
            node = child
        return node, False

    def adopt(
        self, node: Node | None, salt: str, data: bytes, num_pages: int, rows: list[Int32], firsts: list[int]
    ) -> Node:
        """Enter the pages of a request that is about to drop them all; what the tree has already stays as it is.

        Returns the deepest node that holds pages of this request.
        """
        held = node = self._start(node, salt)
        size = self.page_bytes
        for index in range(node.depth, num_pages):
            key = data[index * size : (index + 1) * size]
            child = node.children.get(key) or self._attach(node, key)
            for group, first in enumerate(firsts):
                if index >= first and child.pages[group] == ABSENT:
                    self._set_page(child, group, int(rows[group][index]))
                    held = child
            node = child
        return held

    def _start(self, node: Node | None, salt: str) -> Node:
        if node is not None and node.alive:
            return node
        root = self.roots.get(salt)
        if root is None:
            root = self.roots[salt] = Node(None, b"", len(self.pools), salt)
        return root

    def _attach(self, parent: Node, key: bytes) -> Node:
        child = parent.children[key] = Node(parent, key, len(self.pools), parent.salt)
        return child

    def _held(self, node: Node) -> bool:
        return any(
            page != ABSENT and self.pools[group].refs[page] > 0 for group, page in enumerate(node.pages)
        )

    def _set_page(self, node: Node, group: int, page: int) -> None:
        pool = self.pools[group]
        assert pool.refs[page] > 0, "only held pages enter the tree"
        assert not pool.in_tree[page], "a page caches one prefix"
        pool.in_tree[page] = True
        self._owners[group][page] = node
        node.pages[group] = page
        if self.log is not None:
            self.log.stored(node, group)

    def _remove_page(self, node: Node, group: int) -> None:
        """Free the unheld page of this node in one group."""
        page = node.pages[group]
        if page == ABSENT:
            return
        node.pages[group] = ABSENT
        self._owners[group][page] = None
        self.pools[group].forget(page)

    # --------------------------------------------------------------------------------------- releasing and evicting

    def drop(self, group: int, pages: Int32, counts: Int32 | int = 1) -> None:
        """`counts` holders less for each of these distinct pages.

        Pages of sliding groups that nobody holds any more become evictable here; nodes as a whole by `offer`.
        """
        pool = self.pools[group]
        self._clock += 1
        pool.last_used[pages] = self._clock
        cached = pool.drop(pages, counts)
        if cached.size and group in self._sliding:
            stamp = self._clock << _PAGE_BITS
            for page in cached.tolist():
                self._push(group, stamp | page)

    def offer(self, node: Node) -> None:
        """`node` may have become an unheld leaf: make it evictable if so."""
        if node.parent is None or self.anchor is None:
            self._prune(node)
        elif not node.children and node.alive:
            page = node.pages[self.anchor]
            pool = self.pools[self.anchor]
            if pool.refs[page] == 0:
                self._push(self.anchor, int(pool.last_used[page]) << _PAGE_BITS | page)

    def take(self, group: int, count: int) -> Int32:
        """`count` pages with one holder each; evicts what is missing. The caller knows that they are available."""
        pool = self.pools[group]
        while pool.num_free < count:
            self._evict(group)
        return pool.take(count)

    def clear(self) -> int:
        """Drop every page that nobody holds; returns how many."""
        before = sum(pool.num_cached for pool in self.pools)
        for group, pool in enumerate(self.pools):
            while pool.num_cached:
                self._evict(group)
        return before

    def _evict(self, group: int) -> None:
        if group in self._sliding:
            node = self._pop(group)
            self._expel(node, group)
            self._prune(node)
        else:
            assert self.anchor is not None
            node = self._pop(self.anchor)
            for each, page in enumerate(node.pages):
                if page != ABSENT:
                    self._expel(node, each)
            parent = node.parent
            assert parent is not None
            self._detach(node)
            self.offer(parent)

    def _expel(self, node: Node, group: int) -> None:
        if self.log is not None:
            self.log.removed(node, group)
        self._remove_page(node, group)
        self.num_evicted += 1

    def _prune(self, node: Node) -> None:
        """Take away nodes that cache nothing and lead nowhere, upwards from `node`."""
        while not node.children and all(page == ABSENT for page in node.pages):
            if node.parent is None:
                if self.roots.get(node.salt) is node:
                    del self.roots[node.salt]
                    node.alive = False
                return
            parent = node.parent
            if node.alive:
                self._detach(node)
            node = parent

    def _detach(self, node: Node) -> None:
        assert node.parent is not None
        del node.parent.children[node.key]
        node.alive = False

    def _push(self, group: int, entry: int) -> None:
        heap = self._heaps[group]
        if len(heap) > 2 * self.pools[group].num_pages + 64:
            heap[:] = {old for old in heap if self._owner_if_evictable(group, old)}
            heapq.heapify(heap)
        heapq.heappush(heap, entry)

    def _pop(self, group: int) -> Node:
        heap = self._heaps[group]
        while True:
            node = self._owner_if_evictable(group, heapq.heappop(heap))
            if node is not None:
                return node

    def _owner_if_evictable(self, group: int, entry: int) -> Node | None:
        page = entry & ((1 << _PAGE_BITS) - 1)
        node = self._owners[group][page]
        pool = self.pools[group]
        if node is None or pool.refs[page] or pool.last_used[page] != entry >> _PAGE_BITS:
            return None
        if group == self.anchor and node.children:
            return None
        return node

    # ------------------------------------------------------------------------------------------------------ proving

    def check(self) -> None:
        """Owners, tree and heaps agree; every cached page can be evicted in some order."""
        seen = [0] * len(self.pools)
        for node in self.nodes():
            assert node.alive
            assert node.parent is not None
            assert node.parent.children[node.key] is node
            assert node.children or any(page != ABSENT for page in node.pages), "an empty leaf"
            for group, page in enumerate(node.pages):
                if page == ABSENT:
                    assert self.groups[group].kind == "sliding" or self.anchor is None
                    continue
                seen[group] += 1
                assert self._owners[group][page] is node
                assert self.pools[group].in_tree[page]
            if self.anchor is not None and node.parent.parent is not None:
                refs = self.pools[self.anchor].refs
                assert refs[node.parent.pages[self.anchor]] >= refs[node.pages[self.anchor]], (
                    "a hole in a held path"
                )
        for group, pool in enumerate(self.pools):
            assert seen[group] == np.count_nonzero(pool.in_tree)
            assert pool.num_cached == np.count_nonzero(pool.in_tree & (pool.refs == 0))
            if group != self.anchor and group not in self._sliding:
                continue
            entries = {
                owner for entry in self._heaps[group] if (owner := self._owner_if_evictable(group, entry))
            }
            for node in self.nodes():
                page = node.pages[group]
                if page != ABSENT and not pool.refs[page] and not (group == self.anchor and node.children):
                    assert node in entries, "an evictable page is in no heap"
        for salt, root in self.roots.items():
            assert root.alive
            assert root.salt == salt
            assert root.children, "an empty tree"
