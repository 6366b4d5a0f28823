"""Which texts of a regular expression can be written between tags and are read back as they were."""

from __future__ import annotations

from ...structured import char_sets, regex
from ...structured.char_sets import Ranges
from ...structured.regex import EMPTY, Alt, Chars, Node, Repeat, Seq

ANGLE: Ranges = ((ord("<"), ord("<")),)


def without_angle(node: Node) -> Node:
    """`node` with `<` taken out of its sets of characters, so that no end tag begins there; by itself it stays."""
    match node:
        case Chars(ranges):
            return node if ranges == ANGLE else Chars(char_sets.minus(ranges, ANGLE))
        case Seq(parts):
            return Seq(tuple(without_angle(part) for part in parts))
        case Alt(options):
            return Alt(tuple(without_angle(option) for option in options))
        case Repeat(part, low, high):
            return Repeat(without_angle(part), low, high)


def beginning_otherwise(node: Node, chars: Ranges) -> Node | None:
    """The texts of `node` that do not begin with one of `chars`; None if there are none."""
    match node:
        case Chars(ranges):
            left = char_sets.minus(ranges, chars)
            return Chars(left) if left else None
        case Alt(options):
            found = [beginning_otherwise(option, chars) for option in options]
            kept = [option for option in found if option is not None]
            return regex.alternatives(kept) if kept else None
        case Repeat(part, low, high):
            if high == 0:
                return EMPTY
            first = beginning_otherwise(part, chars)
            rest = Repeat(part, max(low - 1, 0), None if high is None else high - 1)
            if first is None:
                return None if low else EMPTY
            return regex.sequence([first, rest]) if low else Repeat(regex.sequence([first, rest]), 0, 1)
        case Seq(parts):
            return _sequence_otherwise(parts, chars)


def _sequence_otherwise(parts: tuple[Node, ...], chars: Ranges) -> Node | None:
    """Of a sequence: the first part that is not empty decides."""
    if not parts:
        return EMPTY
    first, *rest = parts
    options: list[Node] = []
    narrowed = beginning_otherwise(_something(first), chars)
    if narrowed is not None:
        options.append(regex.sequence([narrowed, *rest]))
    if regex.widths(first)[0] == 0:
        after = _sequence_otherwise(tuple(rest), chars)
        if after is not None:
            options.append(after)
    return regex.alternatives(options) if options else None


def _something(node: Node) -> Node:
    """A repetition made to come at least once, where it may be left out: the other case is looked at by itself."""
    if isinstance(node, Repeat) and node.low == 0 and node.high != 0:
        return Repeat(node.part, 1, node.high)
    return node
