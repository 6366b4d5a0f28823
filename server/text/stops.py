"""Where generated text ends because a stop string has appeared, however tokens cut it."""

from __future__ import annotations


class StopStrings:
    """Watches one sequence's text. Holds back only the tail that could still become a stop string.

    Of several matches the one that is complete first wins, of those the longest: the same text is cut at the same
    place however it arrives in pieces.
    """

    __slots__ = ("_firsts", "_held", "_include", "_longest", "_stops")

    def __init__(self, stops: list[str], *, include: bool = False) -> None:
        assert stops
        assert all(stops)
        self._stops = stops
        self._include = include
        self._firsts = frozenset(stop[0] for stop in stops)
        self._longest = max(map(len, stops))
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that may be shown, the stop string that has appeared or None). Nothing may follow a match."""
        text = self._held + text
        self._held = ""
        if self._firsts.isdisjoint(text):
            return text, None
        first: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (first is None or (start + len(stop), start) < first[:2]):
                first = (start + len(stop), start, stop)
        if first is not None:
            end, start, stop = first
            return text[: end if self._include else start], stop
        keep = self._undecided_from(text)
        self._held = text[keep:]
        return text[:keep], None

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _undecided_from(self, text: str) -> int:
        """Start of the longest tail that begins a stop string; `len(text)` if none does."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._firsts:
                tail = text[start:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return start
        return len(text)
