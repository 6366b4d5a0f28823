"""Markers in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


def first_of(text: str, markers: Sequence[str]) -> tuple[int, str | None]:
    """(where the first of the markers begins, which it is), or (-1, None)."""
    found = [(start, marker) for marker in markers if (start := text.find(marker)) >= 0]
    return min(found) if found else (-1, None)


def undecided_from(text: str, markers: Sequence[str]) -> int:
    """Where the longest end of `text` begins that may yet become one of the markers; `len(text)` if none may."""
    longest = max(map(len, markers))
    for start in range(max(0, len(text) - longest + 1), len(text)):
        tail = text[start:]
        if any(marker.startswith(tail) for marker in markers):
            return start
    return len(text)
