"""Texts as tokens: how they lie in files, and which of them a training step reads.

A set NAME is three files of bare little-endian numbers: `NAME.tokens` (int32, all texts one after the other),
`NAME.lengths` (int32, one a text) and `NAME.wanted` (uint8, one a token: is it one that a head is to draft?).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...scheduler.arrays import Int32
from .chains import TextBatch

SORTED_TOGETHER = 1024  # texts of similar length are found among so many
DTYPES = {"tokens": "<i4", "wanted": "u1", "lengths": "<i4"}


@dataclass(frozen=True, slots=True)
class TokenSet:
    """`tokens` and `wanted` are flat; `ends[i]` is where text i - 1 ends and text i begins."""

    tokens: Int32
    wanted: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]  # (texts + 1,)

    @classmethod
    def of(cls, texts: Sequence[Int32], wanted: Sequence[npt.NDArray[np.uint8]]) -> TokenSet:
        ends = np.cumsum([0, *(len(text) for text in texts)], dtype=np.int64)
        if not texts:
            return cls(np.zeros(0, np.int32), np.zeros(0, np.uint8), ends)
        return cls(np.concatenate(texts), np.concatenate(wanted), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def text(self, index: int) -> Int32:
        return self.tokens[self.ends[index] : self.ends[index + 1]]

    def wanted_of(self, index: int) -> npt.NDArray[np.uint8]:
        return self.wanted[self.ends[index] : self.ends[index + 1]]

    def cut(self, max_length: int) -> TokenSet:
        """The first `max_length` tokens of every text; texts in which then nothing can be drafted are left out."""
        pairs = [(self.text(i)[:max_length], self.wanted_of(i)[:max_length]) for i in range(len(self))]
        kept = [(text, wanted) for text, wanted in pairs if (wanted[1:-1] & wanted[2:]).any()]
        return TokenSet.of([text for text, _ in kept], [wanted for _, wanted in kept])

    def and_also(self, other: TokenSet) -> TokenSet:
        return TokenSet(
            np.concatenate((self.tokens, other.tokens)),
            np.concatenate((self.wanted, other.wanted)),
            np.concatenate((self.ends, self.ends[-1] + other.ends[1:])),
        )

    def batch(self, indexes: Sequence[int], device: torch.device) -> TextBatch:
        """Some texts, padded to the longest of them."""
        lengths = [int(self.ends[i + 1] - self.ends[i]) for i in indexes]
        tokens = np.zeros((len(indexes), max(lengths)), np.int64)
        wanted = np.zeros(tokens.shape, bool)
        for row, (index, length) in enumerate(zip(indexes, lengths, strict=True)):
            tokens[row, :length] = self.text(index)
            wanted[row, :length] = self.wanted_of(index)
        return TextBatch(
            *(torch.from_numpy(x).to(device) for x in (tokens, np.array(lengths, np.int64), wanted))
        )


def is_there(folder: Path, name: str) -> bool:
    """The file of lengths is written last: where it is, all are."""
    return (folder / f"{name}.lengths").is_file()


def read_set(folder: Path, name: str) -> TokenSet:
    """The set `name`, empty if there is none."""
    if not is_there(folder, name):
        return TokenSet.of([], [])
    tokens, wanted, lengths = (
        np.fromfile(folder / f"{name}.{part}", dtype) for part, dtype in DTYPES.items()
    )
    return TokenSet(tokens, wanted, np.cumsum([0, *lengths], dtype=np.int64))


def write_set(folder: Path, name: str, found: TokenSet) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {
        "tokens": found.tokens,
        "wanted": found.wanted,
        "lengths": np.diff(found.ends),
    }
    for part, dtype in DTYPES.items():
        path = folder / f"{name}.{part}"
        temporary = folder / f"{name}.{part}.part"
        arrays[part].astype(dtype).tofile(temporary)
        os.replace(temporary, path)


def epoch_batches(found: TokenSet, batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """All texts once, in batches of at most `batch_tokens` padded tokens (a longer text is one alone).

    Drawn from (seed, epoch) and nothing else, so that a resumed run goes on with the batch that would have come.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(found))
    lengths = np.diff(found.ends)
    batches: list[list[int]] = []
    for begin in range(0, len(order), SORTED_TOGETHER):
        some = order[begin : begin + SORTED_TOGETHER]
        batches.extend(
            similar(some[np.argsort(lengths[some], kind="stable")].tolist(), lengths, batch_tokens)
        )
    return [batches[i] for i in rng.permutation(len(batches))]


def similar(
    ascending: Sequence[int], lengths: npt.NDArray[np.int64], batch_tokens: int
) -> Iterator[list[int]]:
    """Texts in order of length, cut into batches."""
    batch: list[int] = []
    for index in ascending:
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@dataclass(slots=True)
class Reading:
    """Where training stands in its texts."""

    found: TokenSet
    batch_tokens: int
    seed: int
    epoch: int = 0
    index: int = 0
    _batches: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._batches = epoch_batches(self.found, self.batch_tokens, self.seed, self.epoch)

    def next(self) -> list[int]:
        if self.index >= len(self._batches):
            self.epoch, self.index = self.epoch + 1, 0
            self._batches = epoch_batches(self.found, self.batch_tokens, self.seed, self.epoch)
        self.index += 1
        return self._batches[self.index - 1]
