"""BERT (arXiv:1810.04805): post-norm encoder; the first token's state, through the pooler, classifies."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...kernels.interface import Ops
from ..layers.encoder import Encoder
from ..layers.parts import Weights


class Bert(Encoder):
    body = "bert"

    def classifier(self, weights: Weights, ops: Ops) -> Callable[[torch.Tensor], torch.Tensor]:
        hidden, labels = self.config.hidden_size, self.config.num_labels
        pooler = ops.linear(
            weights.tensor("bert.pooler.dense.weight", (hidden, hidden)),
            weights.tensor("bert.pooler.dense.bias", (hidden,)),
        )
        out = ops.linear(
            weights.tensor("classifier.weight", (labels, hidden)),
            weights.tensor("classifier.bias", (labels,)),
            is_head=True,
        )
        return lambda states: out(pooler(states).tanh())
