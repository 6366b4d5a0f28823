"""Both ends of a model, embedding and output head, whose vocabulary is shared out between ranks."""

from __future__ import annotations

import torch

from ...kernels.interface import Linear, Ops
from ..parallel.group import Group
from ..parallel.shard import Part, Shard

ALIGNMENT = 64  # of a rank's rows: GPUs multiply odd ones slowly


def vocab_part(vocab_size: int, shard: Shard) -> Part | None:
    """This rank's rows of a table of the vocabulary; the last ranks' are padded. None = all of it."""
    ranks = shard.tensor.size
    if ranks == 1:
        return None
    each = -(-vocab_size // (ranks * ALIGNMENT)) * ALIGNMENT
    return Part(0, shard.tensor.rank * each, (shard.tensor.rank + 1) * each)


class VocabParallelEmbedding:
    """Each rank looks up the tokens that it has, and the sum over ranks has them all."""

    def __init__(self, ops: Ops, table: torch.Tensor, part: Part, group: Group) -> None:
        self._ops = ops
        self._table = table
        self._part = part
        self._group = group

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """(T,) int32 -> (T, hidden_size)."""
        places = tokens - self._part.first
        elsewhere = (places < 0) | (places >= self._part.end - self._part.first)
        x = self._ops.embedding(self._table, places.masked_fill_(elsewhere, 0))
        return self._group.all_reduce(x.masked_fill_(elsewhere[:, None], 0))


class VocabParallelHead:
    """Each rank computes the logits of its tokens; rank 0 gets them all."""

    def __init__(self, product: Linear, vocab_size: int, group: Group) -> None:
        self._product = product
        self._vocab_size = vocab_size
        self._group = group

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, hidden_size) -> (R, vocab_size) on rank 0; on others their own, which mean nothing alone."""
        own = self._product(hidden)
        parts = self._group.gather(own)
        if not parts:
            return own
        each = own.shape[1]
        return torch.cat(
            [part[:, : max(0, self._vocab_size - rank * each)] for rank, part in enumerate(parts)], dim=1
        )
