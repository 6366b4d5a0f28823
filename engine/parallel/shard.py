"""What one process has of a model: its share of every layer, its run of layers, and whom it exchanges tensors with."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..models.config import ModelConfig
from .group import Group, Pipe


@dataclass(frozen=True, slots=True)
class Part:
    """Indexes first .. end-1 of one dimension of a stored tensor. What lies past its own size is zero."""

    dim: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Shard:
    """`tensor` are the ranks that share every layer; `layers` those that this process runs. `pipe` leads from and to
    other stages; None where this process has the first layer and the last."""

    layers: range
    first: bool = True
    last: bool = True
    tensor: Group = field(default_factory=Group)
    pipe: Pipe | None = None

    def part(self, size: int, dim: int = 0) -> Part | None:
        """This rank's equal share of a dimension of `size`; None = all of it."""
        if self.tensor.size == 1:
            return None
        each, rest = divmod(size, self.tensor.size)
        assert not rest, "what does not divide was refused"
        return Part(dim, self.tensor.rank * each, (self.tensor.rank + 1) * each)

    def kv_part(self, num_kv_heads: int, head_dim: int) -> Part | None:
        """The rows of its KV heads in a projection: a share of them, or one that other ranks have as well."""
        if self.tensor.size == 1:
            return None
        each = max(1, num_kv_heads // self.tensor.size)
        first = self.tensor.rank * num_kv_heads // self.tensor.size
        return Part(0, first * head_dim, (first + each) * head_dim)


def whole(config: ModelConfig) -> Shard:
    """All of a model in one process."""
    return Shard(range(config.num_layers))
