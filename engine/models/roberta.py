"""RoBERTa and XLM-R (arXiv:1907.11692, arXiv:1911.02116): BERT whose positions begin after the padding token's."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...kernels.interface import Ops
from ..layers.encoder import Encoder
from ..layers.parts import Weights


class Roberta(Encoder):
    body = "roberta"

    def classifier(self, weights: Weights, ops: Ops) -> Callable[[torch.Tensor], torch.Tensor]:
        hidden, labels = self.config.hidden_size, self.config.num_labels
        dense = ops.linear(
            weights.tensor("classifier.dense.weight", (hidden, hidden)),
            weights.tensor("classifier.dense.bias", (hidden,)),
        )
        out = ops.linear(
            weights.tensor("classifier.out_proj.weight", (labels, hidden)),
            weights.tensor("classifier.out_proj.bias", (labels,)),
            is_head=True,
        )
        return lambda states: out(dense(states).tanh())
