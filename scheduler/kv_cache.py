"""Which pages each running request holds in every KV group: page tables, growth, windows, prefix hits and release."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arrays import Int32, Rows
from .groups import KVGroup
from .pages import PagePool
from .plan import PageUpdates
from .radix import ABSENT, Node, RadixCache, TreeLog
from .requests import Request

_NO_END = 1 << 31
_EMPTY: Int32 = np.zeros(0, np.int32)
_EMPTY.flags.writeable = False
_NO_ROWS: Rows = np.zeros(0, np.intp)


@dataclass(slots=True)
class Hit:
    """The usable cached prefix of a request: `nodes` from the root down, one per page."""

    nodes: list[Node]
    num_tokens: int
    pages: list[Int32]  # per group: the pages to hold
    firsts: list[int]  # per group: the page index where they begin


class KVCache:
    """Pools, radix tree and page tables of all KV groups.

    `tables[g]` is int32 (num_slots, max_pages). A slot holds the pages for indexes firsts[g][slot] ..
    reach[slot] / page_size - 1, so it may write to the positions below `reach` (num_slots,) int32. Every change is
    recorded for the plan under construction and collected by `updates`.
    """

    def __init__(
        self,
        groups: tuple[KVGroup, ...],
        *,
        num_slots: int,
        max_model_len: int,
        page_size: int,
        enable_prefix_caching: bool,
        log: TreeLog | None = None,
    ) -> None:
        self.groups = groups
        self.page_size = page_size
        self.enabled = enable_prefix_caching
        self.pools = [PagePool(group.num_pages) for group in groups]
        self.tree = RadixCache(groups, self.pools, page_size, log)
        max_pages = self.pages_for(max_model_len)
        self.tables: list[Int32] = [np.zeros((num_slots, max_pages), np.int32) for _ in groups]
        self.firsts: list[Int32] = [np.zeros(num_slots, np.int32) for _ in groups]
        self.reach: Int32 = np.zeros(num_slots, np.int32)
        self.sliding = [
            (index, group.window)
            for index, group in enumerate(groups)
            if group.kind == "sliding" and group.window is not None
        ]
        self._changes: list[list[tuple[Int32, Int32, Int32]]] = [[] for _ in groups]

    # ----------------------------------------------------------------------------------------------------- counting

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def window_pages(self, window: int) -> int:
        """The most pages that the keys of one query can lie on."""
        return (window + self.page_size - 2) // self.page_size + 1

    def needed(self, group: int, num_tokens: int, chunk: int = 1) -> int:
        """Pages a request of `num_tokens` holds at its peak when at most `chunk` tokens are computed at once."""
        window = self.groups[group].window
        pages = self.pages_for(num_tokens)
        if self.groups[group].kind == "full" or window is None:
            return pages
        return min(pages, self.window_pages(window + chunk - 1))

    def available(self) -> int:
        """Pages that can be taken now in the group that has fewest; without groups there is no end of them."""
        return min((pool.available for pool in self.pools), default=_NO_END)

    def updates(self) -> list[PageUpdates]:
        """What changed in the tables since the last call, one entry per group."""
        result = []
        for changes in self._changes:
            if not changes:
                result.append(PageUpdates(_EMPTY, _EMPTY, _EMPTY))
            elif len(changes) == 1:
                result.append(PageUpdates(*changes[0]))
            else:
                slots, indexes, pages = zip(*changes, strict=True)
                result.append(
                    PageUpdates(np.concatenate(slots), np.concatenate(indexes), np.concatenate(pages))
                )
            changes.clear()
        return result

    # --------------------------------------------------------------------------------------------------- prefix hits

    def match(self, request: Request) -> Node | None:
        """The deepest node along the request's tokens; goes on from what an earlier call found."""
        if not self.enabled:
            return None
        pages = request.reusable_tokens() // self.page_size
        if not pages:
            return None
        if not request.data:
            request.data = request.tokens.tobytes()
        request.node = self.tree.walk(request.cache_salt, request.data, pages, request.node)
        return request.node

    def hit(self, request: Request) -> Hit:
        """The longest prefix of which every group still has what the next token needs."""
        node = self.match(request)
        nodes = self.tree.path(node) if node is not None else []
        nodes = nodes[: self._usable(nodes)]
        num_tokens = len(nodes) * self.page_size
        pages, firsts = [], []
        for group in range(len(self.groups)):
            first = self._first_needed(group, num_tokens)
            firsts.append(first)
            pages.append(np.array([node.pages[group] for node in nodes[first:]], np.int32))
        return Hit(nodes, num_tokens, pages, firsts)

    def _first_needed(self, group: int, start: int) -> int:
        """The first page index that a query at position `start` or later reads."""
        window = self.groups[group].window
        if self.groups[group].kind == "full" or window is None:
            return 0
        return max(0, start - window + 1) // self.page_size

    def _usable(self, nodes: list[Node]) -> int:
        """How many of the nodes form a usable prefix."""
        usable = len(nodes)
        if not self.sliding:
            return usable
        runs = [0] * len(self.sliding)
        best = 0
        for depth, node in enumerate(nodes, 1):
            fits = True
            for order, (group, _) in enumerate(self.sliding):
                runs[order] = 0 if node.pages[group] == ABSENT else runs[order] + 1
                fits &= runs[order] >= depth - self._first_needed(group, depth * self.page_size)
            if fits:
                best = depth
        return best

    # ----------------------------------------------------------------------------------------------- taking and giving

    def surely_short(self, request: Request, spare: list[int]) -> bool:
        """Whether `shortage` will say so, as far as one can tell without gathering the hit: O(1) while nothing changes."""
        node = self.match(request)
        missing = self.pages_for(len(request.tokens)) - (node.depth if node is not None else 0)
        return any(
            group.kind == "full" and pool.available < missing + extra
            for group, pool, extra in zip(self.groups, self.pools, spare, strict=True)
        )

    def shortage(self, hit: Hit, num_tokens: int, chunk: int, spare: list[int]) -> bool:
        """Whether some group lacks pages to admit a request of `num_tokens` and leave `spare` pages."""
        for group, pool in enumerate(self.pools):
            reused = hit.pages[group]
            wanted = min(self.needed(group, num_tokens, chunk), pool.num_pages)
            revived = int(np.count_nonzero(pool.refs[reused] == 0))
            if pool.available - revived < wanted - reused.size + spare[group]:
                return True
        return False

    def admit(self, slot: int, hit: Hit) -> None:
        """Hold the pages of the hit and write them into the slot's table."""
        self.reach[slot] = hit.num_tokens
        for group, pool in enumerate(self.pools):
            pages, first = hit.pages[group], hit.firsts[group]
            pool.hold(pages)
            self.firsts[group][slot] = first
            if pages.size:
                indexes = np.arange(first, first + pages.size, dtype=np.int32)
                self.tables[group][slot, indexes] = pages
                self._changes[group].append((np.full(pages.size, slot, np.int32), indexes, pages))

    def grow(self, slot: int, end: int) -> None:
        """Pages for the positions of one slot below `end`."""
        first, beyond = int(self.reach[slot]) // self.page_size, self.pages_for(end)
        if beyond > first:
            indexes = np.arange(first, beyond, dtype=np.int32)
            self._take(np.full(indexes.size, slot, np.int32), indexes)
            self.reach[slot] = beyond * self.page_size

    def lacking(self, slots: Int32, ends: Int32) -> tuple[Rows, Int32]:
        """Which of `slots` (their indexes) need pages to write to the positions below their `ends`, and how many each
        needs in every group."""
        reach = self.reach[slots]
        rows = np.flatnonzero(ends > reach)
        if not rows.size:
            return _NO_ROWS, _EMPTY
        beyond = ends[rows] - reach[rows]
        if beyond.max() == 1:
            return rows, beyond
        return rows, -(-beyond // np.int32(self.page_size))

    def grow_rows(self, slots: Int32, counts: Int32) -> None:
        """`counts` (n,) positive more pages for each of `slots`."""
        indexes = self.reach[slots] // np.int32(self.page_size)
        self.reach[slots] += counts * np.int32(self.page_size)
        total = int(counts.sum())
        if total > slots.size:
            begins = np.cumsum(counts, dtype=np.int32) - counts
            slots = np.repeat(slots, counts)
            indexes = np.arange(total, dtype=np.int32) + np.repeat(indexes - begins, counts)
        self._take(slots, indexes)

    def _take(self, slots: Int32, indexes: Int32) -> None:
        """One new page for each (slot, index) pair in every group."""
        for group, table in enumerate(self.tables):
            pages = self.tree.take(group, slots.size)
            table[slots, indexes] = pages
            self._changes[group].append((slots, indexes, pages))

    def give_back(self, slots: Int32, starts: Int32) -> None:
        """Drop the pages of sliding groups that no query at `starts` (one per slot) or later will read."""
        for group, window in self.sliding:
            firsts = self.firsts[group]
            needed = np.maximum(starts - (window - 1), 0) // self.page_size
            behind = needed > firsts[slots]
            if not behind.any():
                continue
            table = self.tables[group]
            pages = [
                table[slot, firsts[slot] : first]
                for slot, first in zip(slots[behind].tolist(), needed[behind].tolist(), strict=True)
            ]
            distinct, counts = np.unique(np.concatenate(pages), return_counts=True)
            self.tree.drop(group, distinct, counts.astype(np.int32))
            firsts[slots[behind]] = needed[behind]

    # -------------------------------------------------------------------------------------------- caching, releasing

    def cache(self, request: Request, slot: int, num_tokens: int) -> None:
        """Enter the running request's full pages below `num_tokens` into the tree (their KV is planned)."""
        if request.detached or not self.enabled:
            return
        pages = num_tokens // self.page_size
        firsts = self._firsts_of(slot)
        if pages > max(min(firsts), request.node.depth if request.node and request.node.alive else 0):
            rows = [table[slot] for table in self.tables]
            request.node, request.detached = self.tree.extend(
                request.node, request.cache_salt, request.data, pages, rows, firsts
            )

    def release(self, request: Request, slot: int, cacheable: int) -> None:
        """Take away all pages of a slot; full pages below position `cacheable` stay cached."""
        firsts = self._firsts_of(slot)
        node = request.node
        pages = cacheable // self.page_size
        if self.enabled and pages > max(min(firsts), node.depth if node and node.alive else 0):
            data = request.tokens[: pages * self.page_size].tobytes()
            rows = [table[slot] for table in self.tables]
            node = self.tree.adopt(node, request.cache_salt, data, pages, rows, firsts)
        end = int(self.reach[slot]) // self.page_size
        for group, first in enumerate(firsts):
            self.tree.drop(group, self.tables[group][slot, first:end].copy())
        if node is not None:
            self.tree.offer(node)
        request.node = node
        request.detached = False
        request.data = b""

    def _firsts_of(self, slot: int) -> list[int]:
        return [int(firsts[slot]) for firsts in self.firsts]

    def check(self, holders: dict[int, Request]) -> None:
        """Every page is exactly one of free, cached, held; `holders` are the requests in live slots."""
        for group, pool in enumerate(self.pools):
            counted = np.zeros(pool.num_pages, np.int32)
            for slot in holders:
                first, end = int(self.firsts[group][slot]), int(self.reach[slot]) // self.page_size
                pages = self.tables[group][slot, first:end]
                assert len(set(pages.tolist())) == len(pages), "a request holds a page twice"
                counted[pages] += 1
            assert np.array_equal(counted, pool.refs), "reference counts do not match the holders"
            free = np.zeros(pool.num_pages, np.bool_)
            stack = pool.free_pages()
            free[stack] = True
            assert np.count_nonzero(free) == stack.size, "a page is free twice"
            cached = pool.in_tree & (counted == 0)
            held = counted > 0
            assert np.array_equal(free.astype(int) + cached + held, np.ones(pool.num_pages, int)), (
                "pages leak"
            )
            assert stack.size == pool.num_free
            assert int(np.count_nonzero(cached)) == pool.num_cached
            for slot, request in holders.items():
                node = request.node
                while node is not None and node.alive and node.parent is not None:
                    index = node.depth - 1
                    if index >= self.firsts[group][slot]:
                        assert node.pages[group] == self.tables[group][slot, index], (
                            "a page the tree has moved"
                        )
                    node = node.parent
        self.tree.check()
