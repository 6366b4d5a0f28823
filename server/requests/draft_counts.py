"""What became of the drafts of one sequence."""

from __future__ import annotations

from collections.abc import Iterable


class DraftCounts:
    """`accepted[n]` counts verify steps that accepted n drafts, `drafted` the tokens that were verified in them; the
    longest draft has `most` tokens."""

    __slots__ = ("accepted", "drafted", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.drafted = 0
        self.accepted = [0] * (most + 1)

    def add(self, drafted: int, accepted: int) -> None:
        """A step verified `drafted` tokens (at least one), the first `accepted` of which were right."""
        self.drafted += drafted
        self.accepted += [0] * (accepted + 1 - len(self.accepted))
        self.accepted[accepted] += 1

    @property
    def num_steps(self) -> int:
        return sum(self.accepted)

    @property
    def num_accepted(self) -> int:
        return sum(number * count for number, count in enumerate(self.accepted))

    @property
    def mean_length(self) -> float | None:
        """Tokens that a verify step brings, the one that is no draft included."""
        return 1 + self.num_accepted / self.num_steps if self.num_steps else None

    @property
    def rate(self) -> float | None:
        """Share of the drafts that were accepted, 0 to 1."""
        return self.num_accepted / self.drafted if self.drafted else None


def summed(counts: Iterable[DraftCounts]) -> DraftCounts:
    """Of several sequences together."""
    total = DraftCounts(0)
    for each in counts:
        total.most = max(total.most, each.most)
        total.drafted += each.drafted
        total.accepted += [0] * (len(each.accepted) - len(total.accepted))
        for number, count in enumerate(each.accepted):
            total.accepted[number] += count
    return total
