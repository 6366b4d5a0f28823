"""Regular expressions in parsed form: which texts they match, and how they are written for the grammar compiler.

The compiler has two engines with a dialect each, which pass over what they do not know (lookaheads, anchors in the
middle). So it never sees a client's text: it gets the expression written again, in what both dialects read alike.
Inside a JSON string every set of characters is reduced to those that need no escape.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from . import char_sets
from .char_sets import Ranges
from .errors import ConstraintError, Unsatisfiable

MAX_COUNT = 1_000_000
# Says nothing, but a character outside ASCII makes the compiler take the one of its two engines that counts
# repetitions and keeps to them. The other unrolls them, and takes `(?:a{2,})?` for `a*`.
COUNTED = "\u00e9{0}"
MAX_EXCLUDED_CHARS = 24
MAX_STEPS = 300_000  # of all matches for one schema
END, LONGER = "", "more"  # what ends a branch in a tree of names: neither is a character
PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_ ")


class Chars(NamedTuple):
    """One character of a set."""

    ranges: Ranges


class Seq(NamedTuple):
    parts: tuple[Node, ...]


class Alt(NamedTuple):
    options: tuple[Node, ...]


class Repeat(NamedTuple):
    """`low` to `high` times `part`; `high` None = without end."""

    part: Node
    low: int
    high: int | None


Trie: TypeAlias = dict[str, "Trie"]
Node: TypeAlias = Chars | Seq | Alt | Repeat
EMPTY = Seq(())
ANY_TEXT = Repeat(Chars(char_sets.ANY), 0, None)


def one(code: int) -> Chars:
    return Chars(((code, code),))


def sequence(parts: list[Node] | tuple[Node, ...]) -> Node:
    flat: list[Node] = []
    for part in parts:
        flat += part.parts if isinstance(part, Seq) else (part,)
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


def alternatives(options: list[Node]) -> Node:
    return options[0] if len(options) == 1 else Alt(tuple(options))


def literal(text: str) -> Node:
    return sequence([one(ord(char)) for char in text])


def within(node: Node, allowed: Ranges) -> Node | None:
    """The texts of `node` that consist of `allowed` characters alone; None if there are none."""
    match node:
        case Chars(ranges):
            left = char_sets.minus(ranges, char_sets.complement(allowed))
            return Chars(left) if left else None
        case Seq(parts):
            kept = [within(part, allowed) for part in parts]
            whole = [part for part in kept if part is not None]
            return sequence(whole) if len(whole) == len(kept) else None
        case Alt(options):
            left_over = [part for part in (within(option, allowed) for option in options) if part is not None]
            return alternatives(left_over) if left_over else None
        case Repeat(part, low, high):
            inner = within(part, allowed)
            if inner is None:
                return EMPTY if low == 0 else None
            return Repeat(inner, low, high)


def widths(node: Node) -> tuple[int, int | None]:
    """(fewest, most) characters of a text that matches; most = None without end."""
    match node:
        case Chars():
            return 1, 1
        case Seq(parts):
            each = [widths(part) for part in parts]
            most = [high for _, high in each if high is not None]
            return sum(low for low, _ in each), sum(most) if len(most) == len(each) else None
        case Alt(options):
            each = [widths(option) for option in options]
            most = [high for _, high in each if high is not None]
            return min(low for low, _ in each), max(most) if len(most) == len(each) else None
        case Repeat(part, low, high):
            fewest, widest = widths(part)
            if widest == 0 or high == 0:
                return 0, 0
            return fewest * low, None if high is None or widest is None else widest * high


def limited(node: Node, low: int, high: int | None) -> Node | None:
    """The texts of `node` that have `low` to `high` characters, if that is simply written; otherwise None.

    It is where at most one part of a sequence has a variable width, and that part repeats single characters.
    """
    fewest, most = widths(node)
    if fewest >= low and (high is None or (most is not None and most <= high)):
        return node
    parts = node.parts if isinstance(node, Seq) else (node,)
    each = [widths(part) for part in parts]
    loose = [index for index, (least, widest) in enumerate(each) if least != widest]
    if len(loose) != 1:
        return None
    part = parts[loose[0]]
    if not isinstance(part, Repeat) or not isinstance(part.part, Chars):
        return None
    rest = sum(least for index, (least, _) in enumerate(each) if index != loose[0])
    new_low = max(part.low, low - rest)
    new_high = part.high if high is None else high - rest
    if part.high is not None and new_high is not None:
        new_high = min(part.high, new_high)
    if new_high is not None and new_high < new_low:
        return None
    return sequence([*parts[: loose[0]], Repeat(part.part, new_low, new_high), *parts[loose[0] + 1 :]])


class Matcher:
    """Tells which texts match, without backtracking, within a number of steps for all of them together."""

    def __init__(self, path: str, steps: int = MAX_STEPS) -> None:
        self._path = path
        self._left = steps

    def matches(self, node: Node, text: str) -> bool:
        """Does `node` match the whole of `text`? Raises `ConstraintError` when the steps are used up."""
        return len(text) in self._ends(node, text, {0})

    def _ends(self, node: Node, text: str, starts: set[int]) -> set[int]:
        """Where a match may end that begins at one of `starts`."""
        self._left -= 1 + len(starts)
        if self._left < 0:
            raise ConstraintError(
                self._path, "its regular expressions take too long to match the names or values"
            )
        match node:
            case Chars(ranges):
                return {
                    start + 1
                    for start in starts
                    if start < len(text) and char_sets.contains(ranges, ord(text[start]))
                }
            case Seq(parts):
                for part in parts:
                    starts = self._ends(part, text, starts)
                return starts
            case Alt(options):
                return set().union(*(self._ends(option, text, starts) for option in options))
            case Repeat(part, low, high):
                found = set(starts) if low == 0 else set()
                count = 0
                while starts and (high is None or count < high):
                    after = self._ends(part, text, starts)
                    count += 1
                    if count >= low or after == starts:
                        found |= after
                    if after == starts:
                        break
                    starts = after
                return found


def written(node: Node) -> str:
    """`node` in what both engines of the compiler read alike, anchored at both ends."""
    return f"^{_write(node)}{COUNTED}$"


def _write(node: Node) -> str:
    match node:
        case Chars(ranges):
            return _write_set(ranges)
        case Seq(parts):
            return "".join(_write(part) for part in parts)
        case Alt(options):
            return f"(?:{'|'.join(_write(option) for option in options)})"
        case Repeat(part, low, high):
            inner = _write(part)
            if not isinstance(part, Chars):
                inner = f"(?:{inner})"
            match (low, high):
                case (0, None):
                    return f"{inner}*"
                case (1, None):
                    return f"{inner}+"
                case (0, 1):
                    return f"{inner}?"
                case (1, 1):
                    return inner
            return f"{inner}{{{low}{'' if low == high else ',' if high is None else f',{high}'}}}"


def _write_set(ranges: Ranges) -> str:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _write_char(ranges[0][0])
    caret = ord("^")
    parts: list[tuple[int, int]] = []
    for low, high in ranges:
        # One engine writes `^` without an escape, so it must not come first.
        if low == caret and high > caret:
            parts += [(caret + 1, high), (caret, caret)]
        else:
            parts.append((low, high))
    if parts[0] == (caret, caret):
        parts = [*parts[1:], parts[0]]
    return (
        "["
        + "".join(
            _write_char(low) if low == high else f"{_write_char(low)}-{_write_char(high)}"
            for low, high in parts
        )
        + "]"
    )


def _write_char(code: int) -> str:
    char = chr(code)
    if char in PLAIN:
        return char
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\u{{{code:x}}}"


def for_json_string(node: Node, path: str) -> Node:
    """The texts of `node` that a JSON string holds without an escape. Raises `Unsatisfiable` if there are none."""
    plain = within(node, char_sets.JSON_PLAIN)
    if plain is None:
        raise Unsatisfiable(
            path,
            "every text it matches has a quote, a backslash or a control character, which is not supported",
        )
    return plain


def other_than(names: Iterable[str]) -> Node:
    """Texts of plain characters that are none of `names`; its size is that of the names together.

    Of a name longer than `MAX_EXCLUDED_CHARS` nothing may come that begins like it.
    """
    root: Trie = {}
    for name in names:
        here = root
        for char in name[:MAX_EXCLUDED_CHARS]:
            here = here.setdefault(char, {})
        here[LONGER if len(name) > MAX_EXCLUDED_CHARS else END] = {}
    return _other_than(root) or EMPTY


def _other_than(here: Trie) -> Node | None:
    """What may follow the characters that led to this node of the tree of names."""
    if LONGER in here:
        return None
    plain_text = Repeat(Chars(char_sets.JSON_PLAIN), 0, None)
    options: list[Node] = [] if END in here else [EMPTY]
    taken = char_sets.union((ord(char), ord(char)) for char in here if char != END)
    options.append(sequence([Chars(char_sets.minus(char_sets.JSON_PLAIN, taken)), plain_text]))
    for char, after in here.items():
        rest = _other_than(after) if char != END else None
        if rest is not None and char_sets.contains(char_sets.JSON_PLAIN, ord(char)):
            options.append(sequence([one(ord(char)), rest]))
    return alternatives(options)
