"""Does an output go round in circles? Told every token, it says when the output ends in copies of one pattern."""

from __future__ import annotations

import numpy as np

from .arrays import Int32
from .messages import RepetitionDetection


class Repetition:
    """One request's output, looked at for all pattern sizes p at once.

    `_runs[p]` counts the consecutive newest tokens that equal the token p places before them. `count` copies of a
    pattern of p tokens stand at the end exactly if that run is p * (count - 1) long, so a token costs one vectorised
    comparison over the sizes, however long the output is.
    """

    __slots__ = ("_needed", "_past", "_runs", "_sizes")

    def __init__(self, detection: RepetitionDetection, output: Int32) -> None:
        """`output`: what the request has produced already."""
        self._sizes = np.arange(max(1, detection.min_pattern_size), detection.max_pattern_size + 1)
        self._needed = self._sizes * (detection.min_count - 1)
        self._runs = np.array([run_length(output, size) for size in self._sizes.tolist()], np.int64)
        self._past = Past(detection.max_pattern_size, output)

    def push(self, token: int) -> bool:
        """`token` came; True if the output now ends in enough copies of some pattern."""
        equal = self._past.newest_first()[self._sizes - 1] == token
        self._past.push(token)
        self._runs = np.where(equal, self._runs + 1, 0)
        return bool((self._runs >= self._needed).any())


class Past:
    """The newest `width` tokens, -1 where there were none."""

    __slots__ = ("_end", "_tokens", "_width")

    def __init__(self, width: int, tokens: Int32) -> None:
        newest = tokens[len(tokens) - min(len(tokens), width) :]
        self._width = width
        self._tokens = np.full(8 * width, -1, np.int64)
        self._tokens[width - len(newest) : width] = newest
        self._end = width

    def newest_first(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """(width,) tokens."""
        return self._tokens[self._end - self._width : self._end][::-1]

    def push(self, token: int) -> None:
        if self._end == len(self._tokens):
            self._tokens[: self._width] = self._tokens[self._end - self._width : self._end]
            self._end = self._width
        self._tokens[self._end] = token
        self._end += 1


def run_length(output: Int32, size: int) -> int:
    """How many tokens at the end of `output` each equal the one `size` places before."""
    if len(output) <= size:
        return 0
    differs = (output[size:] != output[:-size])[::-1]
    first = int(differs.argmax())
    return first if differs[first] else len(differs)
