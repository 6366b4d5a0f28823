"""Sets of characters as sorted, disjoint ranges of code points, and those that regular expressions have names for.

JavaScript and Python disagree on which characters `\\d`, `\\w` and `\\s` mean. `DIGIT` and its like are what both mean;
`NOT_DIGIT` and its like are what both take for the opposite. What is in neither is never generated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

Ranges: TypeAlias = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)  # no text that can be encoded has them


def union(*sets: Iterable[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(range_ for ranges in sets for range_ in ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """All characters that are not in `ranges`."""
    result = []
    start = 0
    for low, high in union(ranges, (SURROGATES,)):
        if start < low:
            result.append((start, low - 1))
        start = high + 1
    if start <= LAST:
        result.append((start, LAST))
    return tuple(result)


def minus(ranges: Ranges, other: Ranges) -> Ranges:
    return complement(union(complement(ranges), other))


def contains(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


ANY = complement(())
LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
DOT = complement(LINE_ENDS)
DIGIT: Ranges = ((0x30, 0x39),)
NOT_DIGIT: Ranges = ((0x00, 0x2F), (0x3A, 0x65F), (0x2000, 0xA61F), (0xAC00, 0xD7A3))
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
NOT_WORD: Ranges = (
    (0x00, 0x2F),
    (0x3A, 0x40),
    (0x5B, 0x5E),
    (0x60, 0x60),
    (0x7B, 0xA9),
    (0x2010, 0x2027),
    (0x2030, 0x205E),
)
SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
NOT_SPACE = complement(
    (
        (0x09, 0x0D),
        (0x1C, 0x20),
        (0x85, 0x85),
        (0xA0, 0xA0),
        (0x1680, 0x1680),
        (0x2000, 0x200A),
        (0x2028, 0x2029),
        (0x202F, 0x202F),
        (0x205F, 0x205F),
        (0x3000, 0x3000),
        (0xFEFF, 0xFEFF),
    )
)
# What stands for itself inside a JSON string.
JSON_PLAIN = complement(((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C)))
