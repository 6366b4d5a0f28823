"""How dialogues become batches: rows of whole dialogues that do not see each other, loss on answers only."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .render import render
from .text import Dialogue, training_dialogues
from .tokenizer import END_OF_TEXT, TURN_END, TURN_START

IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """Packed rows: ids and labels (rows, length) int64, labels shifted; documents (rows, length) int64."""

    ids: Tensor
    labels: Tensor
    documents: Tensor

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Additive attention mask (rows, 1, length, length): causal, and within one dialogue."""
        length = self.ids.shape[1]
        same = self.documents[:, :, None] == self.documents[:, None, :]
        seen = same & torch.ones(length, length, dtype=torch.bool).tril()
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))[:, None]


class Packer:
    """Fills rows of two lengths with the dialogues of a seeded stream."""

    def __init__(self, tokenizer: Tokenizer, seed: int, row_shapes: tuple[tuple[int, int], ...]) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.row_shapes = row_shapes  # (rows, length), shorter lengths first
        self.start, self.end, self.pad = (
            tokenizer.encode(token).ids[0] for token in (TURN_START, TURN_END, END_OF_TEXT)
        )
        self.answer_head = tokenizer.encode("assistant\n").ids

    def step(self, index: int) -> list[Rows]:
        """The rows of training step `index`; the same for the same seed, tokenizer and row shapes."""
        bins: list[tuple[int, list[list[list[int]]]]] = [
            (length, [[] for _ in range(count)]) for count, length in self.row_shapes
        ]
        misses = 0
        for dialogue in training_dialogues(f"train {self.seed} {index}"):
            ids = self.encode(dialogue)
            misses = 0 if _place(bins, ids) else misses + 1
            if misses > 24:
                break
        return [self._rows(length, rows) for length, rows in bins]

    def encode(self, dialogue: Dialogue) -> list[int]:
        """Token ids of a rendered dialogue, `<|endoftext|>` appended."""
        text = render(dialogue.last.messages, dialogue.last.tools)
        return [*self.tokenizer.encode(text).ids, self.pad]

    def answer_mask(self, ids: list[int]) -> np.ndarray:
        """Which positions of `ids` are the assistant's own tokens, turn end included; bool (len(ids),)."""
        mask = np.zeros(len(ids), dtype=bool)
        head = len(self.answer_head)
        inside = False
        position = 0
        while position < len(ids):
            if ids[position] == self.start and ids[position + 1 : position + 1 + head] == self.answer_head:
                inside = True
                position += 1 + head
                continue
            mask[position] = inside
            if ids[position] == self.end:
                inside = False
            position += 1
        return mask

    def _rows(self, length: int, rows: list[list[list[int]]]) -> Rows:
        ids = np.full((len(rows), length), self.pad, dtype=np.int64)
        labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
        documents = np.full((len(rows), length), -1, dtype=np.int64)
        for r, row in enumerate(rows):
            ends = np.cumsum([0, *(len(document) for document in row)])
            for d, (a, b) in enumerate(pairwise(ends)):
                document = np.array(row[d])
                mask = self.answer_mask(row[d])
                ids[r, a:b] = document
                labels[r, a : b - 1] = np.where(mask[1:], document[1:], IGNORED)
                documents[r, a:b] = d
        return Rows(torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(documents))


def _place(bins: list[tuple[int, list[list[list[int]]]]], ids: list[int]) -> bool:
    for length, rows in bins:
        for row in rows:
            if sum(map(len, row)) + len(ids) <= length:
                row.append(ids)
                return True
    return False
