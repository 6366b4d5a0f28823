"""Runs step plans of an encoder: every row is a whole prompt that comes and goes with its step, nothing is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from ..kernels.attention.bidirectional import BidirectionalAttention
from ..scheduler.arrays import Int32
from ..scheduler.messages import PoolingParams
from ..scheduler.plan import RowPooled, StepPlan, StepResult
from .device_thread import DeviceThread, Promise
from .layers.encoder import Encoder, EncoderBatch
from .pooling import Pooler

WARM_UP_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row: its tokens and what is wanted of it."""

    tokens: Int32
    pooling: PoolingParams


class EncoderRunner:
    """Owns the model and the device thread. It has no arrays over slots, so any number of them will do."""

    def __init__(
        self,
        model: Encoder,
        attention: BidirectionalAttention,
        pooler: Pooler,
        *,
        num_slots: int,
        device: torch.device,
        thread: DeviceThread,
    ) -> None:
        self.num_slots = num_slots
        self._model = model
        self._attention = attention
        self._pooler = pooler
        self._device = device
        self._thread = thread

    def launch(self, plan: StepPlan) -> Promise[StepResult]:
        """Start a step and return at once; its `result()` waits for it and raises what went wrong in it."""
        prompts = []
        for init, slot, length in zip(plan.inits, plan.slots.tolist(), plan.lens.tolist(), strict=True):
            request = init.request
            assert init.slot == slot, "the rows of an encoder's plan are the prompts that it brings, in order"
            assert length == len(request.tokens), "an encoder reads a prompt in one step"
            assert request.pooling is not None, "an encoder does not generate"
            prompts.append(Prompt(request.tokens, request.pooling))
        return self._thread.submit(self._step, prompts)

    def warm_up(self, longest: int, task: str) -> None:
        """Run a prompt, so that the first request finds everything touched and chosen."""
        tokens = np.zeros(min(WARM_UP_TOKENS, longest), np.int32)
        wanted = PoolingParams(task="classify" if task == "classify" else "embed")
        self._thread.submit(self._step, [Prompt(tokens, wanted)]).result()

    def close(self) -> None:
        """Let the running step end, then end the device thread."""
        self._thread.close()

    # ------------------------------------------------------------------------------------------- on the device thread

    def _step(self, prompts: list[Prompt]) -> StepResult:
        begin = time.perf_counter()
        lens = np.array([len(prompt.tokens) for prompt in prompts], np.int32)
        ends = np.cumsum(lens)
        self._attention.plan(lens)
        hidden = self._model.forward(self._batch(prompts, lens))
        spans = list(zip((ends - lens).tolist(), ends.tolist(), strict=True))
        vectors = self._pooler.pool(hidden, spans, [prompt.pooling for prompt in prompts])
        return StepResult(
            counts=np.zeros(len(prompts), np.int32),
            tokens=np.zeros(0, np.int32),
            pooled=[RowPooled(row, vector) for row, vector in enumerate(vectors)],
            device_seconds=time.perf_counter() - begin,
        )

    def _batch(self, prompts: list[Prompt], lens: Int32) -> EncoderBatch:
        types = None
        # A model with one type takes whatever its tokenizer calls the parts of a pair for the same.
        if self._model.config.type_vocab_size > 1 and any(prompt.pooling.token_types for prompt in prompts):
            types = np.concatenate([token_types(prompt) for prompt in prompts]).astype(np.int32)
        tokens = np.concatenate([prompt.tokens for prompt in prompts])
        positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lens.tolist()])
        return EncoderBatch(
            tokens=torch.from_numpy(tokens).to(self._device),
            positions=torch.from_numpy(positions).to(self._device),
            token_types=None if types is None else torch.from_numpy(types).to(self._device),
        )


def token_types(prompt: Prompt) -> np.ndarray:
    """uint8, one a token."""
    given = np.frombuffer(prompt.pooling.token_types, np.uint8)
    return given if given.size else np.zeros(len(prompt.tokens), np.uint8)
