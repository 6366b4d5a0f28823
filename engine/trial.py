"""Steps run before there are KV pages, to measure what they take: the largest one, and decodes that are recorded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..kernels.attention.interface import AttentionBackend
from ..kernels.interface import Recorder
from ..kernels.sampling.interface import SamplingParameters
from ..scheduler.plan import StepPlan
from .batch import BatchBuilder, ForwardBatch
from .graphs import CapturedForward
from .layers.decoder import Decoder
from .parallel.ranks import Ranks
from .streams import open_stream


class Trial:
    """A model on one scratch page for each KV group. All methods run on the device's thread."""

    def __init__(
        self,
        model: Decoder,
        attention: Sequence[AttentionBackend],
        kv: list[tuple[torch.Tensor, torch.Tensor]],  # of one page
        *,
        max_model_len: int,
        page_size: int,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        recorder: Recorder | None,
        sizes: Sequence[int],
        device: torch.device,
        ranks: Ranks | None = None,  # which all do the same, at the same time
    ) -> None:
        self._model = model
        self._attention = attention
        self._longest = max_model_len
        self._num_tokens = max_num_batched_tokens
        self._num_rows = max_num_seqs
        self._device = device
        self._ranks = ranks
        tokens = torch.zeros((1, max_model_len), dtype=torch.int32, device=device)
        width = -(-max_model_len // page_size)
        tables = [torch.zeros((1, width), dtype=torch.int32, device=device) for _ in attention]
        self._batches = BatchBuilder(tokens, tables, kv, open_stream(device))
        self._graphs = CapturedForward(model.forward, recorder, sizes, device) if recorder and sizes else None

    def largest_step(self) -> None:
        """As many tokens of prompts as a step may have, and a draw for as many rows as may run."""
        lens = [self._longest] * (self._num_tokens // self._longest)
        lens += [rest] if (rest := self._num_tokens - sum(lens)) else []
        hidden = self._model.forward(self._planned(lens))
        if self._model.config.head != "lm" or (self._ranks is not None and not self._ranks.has_head):
            return
        rows = min(self._num_rows, len(hidden))
        logits = self._model.logits(hidden[:rows])
        if self._ranks is not None and not self._ranks.leads:
            return
        one = torch.ones(1, device=self._device)
        how = SamplingParameters(
            temperature=one,
            top_k=torch.full((1,), 50, dtype=torch.int32, device=self._device),
            top_p=0.9 * one,
            min_p=0.0 * one,
            greedy=np.zeros(1, np.bool_),
            truncated=np.ones(1, np.bool_),
        )
        # Penalties and biases work on a copy in float32.
        adjusted = logits.to(torch.float32, copy=True)
        self._model.ops.sampling.sample(adjusted, how, np.zeros(rows, np.int32), np.full(rows, 0.5))

    def capture(self, size: int) -> bool:
        """Record decodes of `size` rows; whether that can be done."""
        return self._graphs is not None and self._graphs.capture(self._planned([1] * size, decodes=True))

    def release(self) -> None:
        """Drop what was recorded."""
        self._graphs = None

    def _planned(self, lens: list[int], *, decodes: bool = False) -> ForwardBatch:
        count = len(lens)
        plan = StepPlan(
            step=-1,
            slots=np.zeros(count, np.int32),
            starts=np.zeros(count, np.int32),
            lens=np.array(lens, np.int32),
            sample=np.zeros(count, np.bool_),
            num_decode_rows=count if decodes else 0,
            num_tokens=sum(lens),
        )
        batch, _ = self._batches.build(plan)
        for backend, attention_batch in zip(self._attention, batch.attention, strict=True):
            backend.plan(attention_batch)
        return batch
