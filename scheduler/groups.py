"""What a KV group is: layers that share one kind of cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that share one kind of cache, one page table and one rule of what a prefix hit needs.

    `full`: every position is kept. `sliding`: only the last `window` positions are needed, pages behind them are
    given back. All groups of a model have the same page size; each has its own pool of `num_pages` pages.
    """

    kind: Literal["full", "sliding"]
    num_pages: int
    window: int | None = None  # keys a query sees, itself included
