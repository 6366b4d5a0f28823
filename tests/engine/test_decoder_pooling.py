"""A decoder's last token embeds and classifies its prompt: chunked, cached, preempted, beside requests that generate."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from penstock.engine.assemble import create
from penstock.engine.build import Built
from penstock.engine.errors import ConfigurationError
from penstock.scheduler.messages import EngineConfig, PoolerConfig, PoolingParams, SamplingParams
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler
from pooling_runs import pool, pooling_request
from tiny_models import VOCAB_SIZE, make_checkpoint
from transformers import PreTrainedModel

GENERATOR = torch.Generator().manual_seed(11)
LONG = torch.randint(3, VOCAB_SIZE, (90,), generator=GENERATOR).tolist()
PROMPTS = [LONG[:1], LONG[:41], [*LONG[:33], 9, 8, 7], LONG[50:71], LONG[:64], LONG, LONG[:90]]


@contextmanager
def served(path: Path, **options: Any) -> Iterator[Built]:
    """Few pages, few tokens a step: prompts are cut into uneven chunks."""
    config = {
        "device": "cpu",
        "num_threads": 1,
        "max_model_len": 96,
        "page_size": 4,
        "num_pages": 40,
        "max_num_seqs": 5,
        "max_num_batched_tokens": 17,
        **options,
    }
    built = create(EngineConfig(model_dir=str(path), **config), lambda phase, fraction: None)
    try:
        yield built
    finally:
        built.runner.close()


@torch.no_grad()
def reference_embedding(model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    """The last token's state after the final norm, at unit length."""
    body = getattr(model, "model", model)
    return torch.nn.functional.normalize(body(torch.tensor([prompt])).last_hidden_state[0, -1], dim=0)


def assert_embeddings(model: PreTrainedModel, vectors: list[np.ndarray]) -> None:
    for prompt, vector in zip(PROMPTS, vectors, strict=True):
        expected = reference_embedding(model, prompt)
        torch.testing.assert_close(torch.from_numpy(vector), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_server_that_generates_embeds_too(tmp_path: Path, family: str) -> None:
    reference = make_checkpoint(family, tmp_path)
    with served(tmp_path) as built:
        assert built.info.tasks == ("generate", "embed")
        assert_embeddings(reference, pool(built, PROMPTS))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3-body", {}),  # names its tensors without the prefix of the whole model
        ("qwen3", {"runner": "pooling"}),
        ("qwen3", {"convert": "embed"}),
        ("qwen3-classifier", {"convert": "embed"}),
    ],
)
def test_a_body_without_its_head_only_embeds(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    reference = make_checkpoint(family, tmp_path)
    with served(tmp_path, **options) as built:
        assert built.info.tasks == ("embed",)
        assert_embeddings(reference, pool(built, PROMPTS))


def test_prefix_hits_give_the_same_embeddings(tmp_path: Path) -> None:
    reference = make_checkpoint("qwen3", tmp_path)
    with served(tmp_path) as built:
        scheduler = Scheduler(built.scheduler_config)
        for _ in range(2):
            assert_embeddings(reference, pool(built, PROMPTS, scheduler=scheduler))
        assert scheduler.load().cached_prompt_tokens > 200


@pytest.mark.parametrize("num_labels", [1, 4])
def test_a_score_head_classifies_by_the_last_token(tmp_path: Path, num_labels: int) -> None:
    reference = make_checkpoint("qwen3-classifier", tmp_path, num_labels=num_labels)
    with served(tmp_path) as built:
        assert built.info.tasks == ("classify",)
        found = pool(built, PROMPTS, PoolingParams(task="classify"))
    for prompt, probabilities in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([prompt])).logits[0]
        expected = logits.sigmoid() if num_labels == 1 else logits.softmax(-1)
        torch.testing.assert_close(torch.from_numpy(probabilities), expected, atol=1e-4, rtol=0)


def test_embeddings_beside_generation_change_neither(tmp_path: Path) -> None:
    """Few enough pages that requests preempt each other."""
    reference = make_checkpoint("qwen3", tmp_path)
    sampling = SamplingParams(max_tokens=25, temperature=0.0)
    with served(tmp_path, num_pages=27, max_num_seqs=6) as built:
        scheduler = Scheduler(built.scheduler_config)
        writers = [
            Request(
                key=("write", i), tokens=np.array(p, np.int32), num_prompt_tokens=len(p), sampling=sampling
            )
            for i, p in enumerate([LONG[:20], LONG[30:60], LONG[60:75]])
        ]
        readers = [pooling_request(i, prompt) for i, prompt in enumerate(PROMPTS)]
        arriving = deque(request for pair in zip(writers, readers, strict=False) for request in pair)
        arriving.extend(readers[len(writers) :])
        vectors: dict[object, np.ndarray] = {}
        mixed = False
        while arriving or scheduler.has_work():
            if arriving:
                scheduler.add(arriving.popleft())
            plan = scheduler.plan(0.0)
            if plan is None:
                continue
            outcome = scheduler.commit(plan, built.runner.launch(plan).result(), 0.0)
            mixed |= bool(outcome.pooled) and plan.num_decode_rows > 0
            vectors |= {request.key: pooled.values for request, pooled in outcome.pooled}
            scheduler.check()
        assert mixed
        assert scheduler.load().num_preemptions > 0
    assert_embeddings(reference, [vectors[i] for i in range(len(PROMPTS))])
    for writer in writers:
        prompt = writer.tokens[: writer.num_prompt_tokens].tolist()
        with torch.no_grad():
            expected = reference.generate(torch.tensor([prompt]), max_new_tokens=25, do_sample=False)
        assert writer.tokens.tolist() == expected[0].tolist()


def test_an_aborted_prompt_brings_nothing(tmp_path: Path) -> None:
    make_checkpoint("qwen3", tmp_path)
    with served(tmp_path) as built:
        scheduler = Scheduler(built.scheduler_config)
        kept, aborted = pooling_request("kept", LONG[:5]), pooling_request("aborted", LONG[10:15])
        scheduler.add(kept)
        scheduler.add(aborted)
        plan = scheduler.plan(0.0)
        assert plan is not None
        handle = built.runner.launch(plan)
        scheduler.abort(aborted)
        outcome = scheduler.commit(plan, handle.result(), 0.0)
        assert [request.key for request, _ in outcome.pooled] == ["kept"]
        assert [request.key for request in outcome.finished] == ["kept"]
        assert not scheduler.has_work()
        scheduler.check()


def test_times_and_cached_tokens_are_told_of_prompts_that_draw_nothing(tmp_path: Path) -> None:
    make_checkpoint("qwen3", tmp_path)
    with served(tmp_path) as built:
        scheduler = Scheduler(built.scheduler_config)
        scheduler.add(pooling_request("one", LONG[:9]))
        plan = scheduler.plan(3.0)
        assert plan is not None
        outcome = scheduler.commit(plan, built.runner.launch(plan).result(), 5.0)
        ((request, queue_s, prefill_s),) = outcome.first
        assert (request.key, queue_s, prefill_s) == ("one", 3.0, 2.0)
        assert request.finish_reason == "stop"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"convert": "embed", "runner": "generate"}, "keep one"),
        ({"convert": "none", "runner": "pooling"}, "keep one"),
        ({"pooler_config": PoolerConfig("MEAN")}, "mean pooling of a decoder is not supported"),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    make_checkpoint("qwen3", tmp_path)
    with pytest.raises(ConfigurationError, match=complaint), served(tmp_path, **options):
        pass


def test_convert_none_leaves_generation_alone(tmp_path: Path) -> None:
    make_checkpoint("qwen3", tmp_path)
    with served(tmp_path, convert="none") as built:
        assert built.info.tasks == ("generate",)
        assert built.info.pooling is None


def test_declared_matryoshka_sizes_are_told(tmp_path: Path) -> None:
    make_checkpoint("qwen3", tmp_path)
    with served(tmp_path, hf_overrides={"matryoshka_dimensions": [32, 16]}) as built:
        assert built.info.pooling is not None
        assert built.info.pooling.matryoshka_dimensions == [16, 32]
    with served(tmp_path, hf_overrides={"is_matryoshka": True}) as built:
        assert built.info.pooling is not None
        assert built.info.pooling.any_dimension
