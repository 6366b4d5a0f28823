"""Which pages of one KV group are free, cached or held: a stack, reference counts and the counters over them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .arrays import Bool, Int32


class PagePool:
    """The pages 0 .. num_pages-1 of one KV group.

    Every page is in exactly one state: free (on the stack), cached (in the radix tree, no holder) or held (`refs`
    holders; in the tree or private). All operations are vectorised over int32 page arrays.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.refs: Int32 = np.zeros(num_pages, np.int32)
        self.in_tree: Bool = np.zeros(num_pages, np.bool_)
        self.last_used: npt.NDArray[np.int64] = np.zeros(num_pages, np.int64)  # release counter, for LRU
        self.num_free = num_pages
        self.num_cached = 0
        self._stack: Int32 = np.arange(num_pages - 1, -1, -1, dtype=np.int32)

    @property
    def num_held(self) -> int:
        return self.num_pages - self.num_free - self.num_cached

    @property
    def available(self) -> int:
        """Pages that can be taken now: free ones, and cached ones after eviction."""
        return self.num_free + self.num_cached

    def free_pages(self) -> Int32:
        return self._stack[: self.num_free].copy()

    def take(self, count: int) -> Int32:
        """`count` free pages, each with one holder."""
        assert count <= self.num_free, f"{count} pages asked, {self.num_free} free"
        rest = self.num_free - count
        pages = self._stack[rest : self.num_free].copy()
        self.num_free = rest
        self.refs[pages] = 1
        return pages

    def hold(self, pages: Int32) -> None:
        """One more holder for each of these distinct tree pages."""
        self.num_cached -= int(np.count_nonzero(self.refs[pages] == 0))
        self.refs[pages] += 1

    def drop(self, pages: Int32, counts: Int32 | int = 1) -> Int32:
        """`counts` holders less for each of these distinct pages. Returns the pages that became cached."""
        left = self.refs[pages] - counts
        assert not left.size or left.min() >= 0, "a page was dropped more often than held"
        self.refs[pages] = left
        ended = pages[left == 0]
        kept = self.in_tree[ended]
        self._push(ended[~kept])
        cached: Int32 = ended[kept]
        self.num_cached += cached.size
        return cached

    def forget(self, page: int) -> None:
        """A cached page leaves the tree and becomes free."""
        assert self.refs[page] == 0, "a held page was evicted"
        self.in_tree[page] = False
        self.num_cached -= 1
        self._stack[self.num_free] = page
        self.num_free += 1

    def _push(self, pages: Int32) -> None:
        self._stack[self.num_free : self.num_free + pages.size] = pages
        self.num_free += pages.size
