"""Verified drafts have the target's distribution: counted over a hundred thousand tokens, for every source of drafts.

The model is a table: what comes next depends on the token before alone, so the exact distribution of every token is
known. All else is the engine's own: scheduler, runner, token buffer, sampler, drafters. A token is counted under what
was drafted in its place: as the draft itself, or by how probable it was among the others. The counts are compared with
their expectations by the exact covariance of a sum of differing multinomials.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from oracle_drafter import Clockwork
from penstock.engine.build import Built, create_runner
from penstock.engine.speculation import Binding, Speculation
from penstock.scheduler.arrays import Int32
from penstock.scheduler.messages import EngineConfig, SamplingParams
from penstock.scheduler.plan import StepPlan
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler
from penstock.spec import verify
from penstock.spec.interface import HostDrafter
from penstock.spec.ngram import NgramOptions, ngram_drafter
from tiny_models import make_checkpoint

VOCAB = 12
ROWS = 128
PROMPT, OUTPUT = 8, 812  # tokens: 128 x 812 = 103 936 are drawn
MOST = 4  # drafts of a row
TABLE = 2.2 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(4))
BIAS = {3: 1.5, 7: -2.0}
# A quarter of the requests each; penalties so small that hundreds of tokens do not make the output flat.
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.3, "frequency_penalty": 0.004, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    {"temperature": 1.1, "logit_bias": BIAS, "top_p": 0.95},
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    path: Path = tmp_path_factory.mktemp("table")
    make_checkpoint("llama", path, vocab_size=VOCAB, num_hidden_layers=1, max_position_embeddings=1024)
    made = create_runner(
        EngineConfig(
            model_dir=str(path),
            device="cpu",
            num_threads=1,
            max_model_len=PROMPT + OUTPUT,
            num_pages=-(-(PROMPT + OUTPUT) // 16) * ROWS,
            max_num_seqs=ROWS,
            max_num_batched_tokens=2048,
            enforce_eager=True,
        )
    )
    with (
        patch.object(made.runner, "_forward", lambda batch: batch.tokens.long()),
        patch.object(made.runner._model, "logits", lambda tokens: TABLE[tokens]),
    ):
        yield made
    made.runner.close()


@dataclass
class Drawn:
    """Row i: prompt and output (PROMPT + OUTPUT,) of request i, and for each place what was drafted when it was drawn
    (-1: nothing), and as which token of its draft."""

    tokens: Int32
    drafts: Int32
    offsets: Int32


class Recorded(Speculation):
    """Keeps what was drafted for each position."""

    def __init__(self, drafter: HostDrafter, *, adaptive: bool) -> None:
        super().__init__(2 * ROWS, drafter, max_draft_tokens=MOST, adaptive=adaptive)
        self._cost = Clockwork()  # type: ignore[assignment]
        self.drafts = np.full((2 * ROWS, PROMPT + OUTPUT + 1), -1, np.int32)
        self.offsets = np.full_like(self.drafts, -1)

    def bind(self, plan: StepPlan, admit: Any) -> Binding:
        found = super().bind(plan, admit)
        rows, counts, tokens = found.plan, np.zeros(found.plan.slots.size, np.int32), np.zeros(0, np.int32)
        if found.bound is not None:
            counts, tokens = found.bound.drafts.counts, found.bound.drafts.tokens
        begins, firsts = np.cumsum(counts) - counts, rows.starts + rows.lens - counts
        for slot, first, begin, count in zip(rows.slots, firsts, begins, counts, strict=True):
            self.drafts[slot, first : first + count] = tokens[begin : begin + count]
            self.offsets[slot, first : first + count] = range(count)
            self.drafts[slot, first + count] = self.offsets[slot, first + count] = -1
        return found


def draw(
    built: Built,
    drafter: HostDrafter,
    predictions: Int32 | None = None,
    *,
    adaptive: bool = False,
    first_seed: int = 70_000,
) -> Drawn:
    """All requests to their end, one step in flight."""
    scheduler = Scheduler(replace(built.scheduler_config, max_draft_tokens=MOST))
    prompts = np.random.default_rng(1).integers(0, VOCAB, (ROWS, PROMPT)).astype(np.int32)
    requests = [
        Request(
            key=i,
            tokens=prompts[i],
            num_prompt_tokens=PROMPT,
            sampling=SamplingParams(max_tokens=OUTPUT, seed=first_seed + i, **SAMPLINGS[i % len(SAMPLINGS)]),
            prediction=None if predictions is None else predictions[i],
            arrival=i,
        )
        for i in range(ROWS)
    ]
    for request in requests:
        scheduler.add(request)
    recorded = Recorded(drafter, adaptive=adaptive)
    slots: dict[int, int] = {}
    in_flight: deque[Any] = deque()
    with patch.object(built.runner, "_speculation", recorded):
        while scheduler.has_work():
            plan = scheduler.plan(0.0)
            if plan is not None:
                slots.update({int(init.request.key): init.slot for init in plan.inits})  # type: ignore[call-overload]
                in_flight.append((plan, built.runner.launch(plan)))
            if len(in_flight) == 2 or plan is None:
                oldest, handle = in_flight.popleft()
                scheduler.commit(oldest, handle.result(), 0.0)
    order = [slots[i] for i in range(ROWS)]
    return Drawn(
        np.stack([request.tokens for request in requests]),
        recorded.drafts[order, :-1],
        recorded.offsets[order, :-1],
    )


# ------------------------------------------------------------------------------------------------ what is expected


def distributions(tokens: np.ndarray) -> np.ndarray:
    """(ROWS, OUTPUT, VOCAB) of every output token, from the definitions of what is sampled with."""
    outputs = tokens[:, PROMPT:]
    one_hot = np.eye(VOCAB)[outputs]
    counts = np.cumsum(one_hot, axis=1) - one_hot  # of output tokens before
    in_prompt = np.eye(VOCAB)[tokens[:, :PROMPT]].max(axis=1)[:, None]
    logits = TABLE.double().numpy()[tokens[:, PROMPT - 1 : -1]]
    for kind, how in enumerate(SAMPLINGS):
        rows = slice(kind, None, len(SAMPLINGS))
        x = logits[rows]
        known = (counts[rows] + in_prompt[rows]) > 0
        repetition = how.get("repetition_penalty", 1.0)
        x = np.where(known, np.where(x > 0, x / repetition, x * repetition), x)
        x -= how.get("frequency_penalty", 0.0) * counts[rows]
        x -= how.get("presence_penalty", 0.0) * (counts[rows] > 0)
        for token, bias in how.get("logit_bias", {}).items():
            x[..., token] += bias
        logits[rows] = truncated(x / how["temperature"], how)
    return softmax(logits)


def truncated(x: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """Logits (..., VOCAB) after top-k, then top-p, then min-p."""
    best = np.argsort(-x, axis=-1)
    rank = np.argsort(best, axis=-1)
    x = np.where(rank < how.get("top_k", VOCAB), x, -np.inf)
    in_order = np.take_along_axis(softmax(x), best, -1)
    before = np.take_along_axis(np.cumsum(in_order, -1) - in_order, rank, -1)
    x = np.where(before < how.get("top_p", 1.0), x, -np.inf)
    p = softmax(x)
    return np.where(p >= how.get("min_p", 0.0) * p.max(-1, keepdims=True), x, -np.inf)


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def excess(observed: np.ndarray, chances: np.ndarray) -> float:
    """How many standard deviations chi-square is above what chance gives; categories observed (n,), chances (n, k),
    those expected less than 25 times taken together."""
    rare = chances.sum(0) < 25
    if rare.any():
        chances = np.column_stack([chances[:, ~rare], chances[:, rare].sum(1)])
        observed = np.where(rare, chances.shape[1] - 1, np.cumsum(~rare) - 1)[observed]
    difference = np.bincount(observed, minlength=chances.shape[1]) - chances.sum(0)
    covariance = np.diag(chances.sum(0)) - chances.T @ chances
    freedom = np.linalg.matrix_rank(covariance)
    square = difference @ np.linalg.pinv(covariance) @ difference
    return float((square - freedom) / math.sqrt(2 * freedom))


def excesses(drawn: Drawn) -> dict[str, float]:
    """Of tokens without a draft in their place, of those with one, per way of sampling and per place in a draft."""
    chances = distributions(drawn.tokens)
    tokens, drafts, offsets = (a[:, PROMPT:] for a in (drawn.tokens, drawn.drafts, drawn.offsets))
    assert (np.take_along_axis(chances, tokens[..., None], -1) > 0).all(), "a token that cannot come"
    # The categories: the draft first, the others from the most probable to the least.
    order = chances.copy()
    some = drafts >= 0
    order[some, drafts[some]] = 2.0
    best = np.argsort(-order, axis=-1)
    category = (best == tokens[..., None]).argmax(-1)
    sorted_chances = np.take_along_axis(chances, best, -1)
    kinds = np.broadcast_to(np.arange(ROWS)[:, None] % len(SAMPLINGS), tokens.shape)
    groups = {f"no draft, sampling {k}": ~some & (kinds == k) for k in range(len(SAMPLINGS))}
    groups |= {f"draft, sampling {k}": some & (kinds == k) for k in range(len(SAMPLINGS))}
    groups |= {f"draft token {j}": offsets == j for j in range(MOST)}
    found = {
        name: excess(category[here], sorted_chances[here])
        for name, here in groups.items()
        if here.sum() >= 200
    }
    accepted = (tokens == drafts)[some].mean()
    assert len(found) == len(groups), "every group has its share"
    assert 0.1 < accepted < 0.9, f"{accepted} of the drafts were right"
    return found


# ------------------------------------------------------------------------------------------------------- the sources


def ngram() -> HostDrafter:
    return ngram_drafter(2 * ROWS, NgramOptions(min_match=1))


class Guesses:
    """Draws its drafts from the table, at another temperature: what a model that drafts does."""

    num_sources = 1

    def __init__(self) -> None:
        self._rng = np.random.default_rng(11)
        self._ends = softmax(TABLE.double().numpy() / 0.6).cumsum(-1)
        self._last = np.zeros(2 * ROWS, np.int32)

    def start(self, slot: int, tokens: Int32, prediction: Int32 | None = None, **_: object) -> None:
        self._last[slot] = tokens[-1]

    def extend(self, slots: Int32, counts: Int32, tokens: Int32, verified: Int32 | None = None) -> None:
        self._last[slots] = tokens[np.cumsum(counts) - 1]

    def propose(self, slots: Int32, max_lens: Int32) -> tuple[Int32, Int32]:
        drafts = np.zeros((len(slots), MOST), np.int32)
        last = self._last[slots]
        for j in range(MOST):
            u = self._rng.random((len(slots), 1))
            last = drafts[:, j] = np.minimum((self._ends[last] < u).sum(-1), VOCAB - 1)
        return max_lens.copy(), drafts[np.arange(MOST) < max_lens[:, None]]

    def sources(self) -> Int32:
        raise AssertionError("asked for by nobody who does not adapt")

    def predicted(self, slots: Int32) -> tuple[Int32, Int32]:
        return np.zeros(len(slots), np.int32), np.zeros(len(slots), np.int32)

    def stop(self, slot: int) -> None: ...


def drawn_from(built: Built, source: str) -> Drawn:
    """What is drafted must not know what will be drawn, so a prediction is what other seeds said."""
    match source:
        case "prediction":
            others = draw(built, ngram(), first_seed=1).tokens[:, PROMPT:]
            return draw(built, ngram(), others)
        case "model":
            return draw(built, Guesses())
        case _:
            return draw(built, ngram(), adaptive=source == "adaptive ngram")


@pytest.mark.parametrize("source", ["ngram", "adaptive ngram", "prediction", "model"])
def test_tokens_have_the_targets_distribution(built: Built, source: str) -> None:
    drawn = drawn_from(built, source)
    assert drawn.tokens[:, PROMPT:].size >= 100_000
    assert max(excesses(drawn).values()) < 4.5


def test_a_rule_that_accepts_what_was_not_drawn_is_found_out(built: Built) -> None:
    """One wrong draft in twenty is taken for right."""

    def lenient(drawn: Int32, drafts: verify.Drafts) -> Int32:
        tokens = drawn.copy()
        compared = np.flatnonzero(
            verify.offsets(drafts.counts + 1) < np.repeat(drafts.counts, drafts.counts + 1)
        )
        wrong = np.flatnonzero(tokens[compared] != drafts.tokens)[::20]
        tokens[compared[wrong]] = drafts.tokens[wrong]
        return verify.num_right(tokens, drafts)

    with (
        patch("penstock.engine.bound.num_right", lenient),
        patch("penstock.engine.speculation.num_right", lenient),
        patch(f"{__name__}.SAMPLINGS", ({"temperature": 1.0},)),
    ):
        assert max(excesses(draw(built, ngram())).values()) > 20
