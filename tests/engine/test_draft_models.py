"""Drafters that are models: what they draft is what their papers say, in any batch, chunks, pages and recordings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from engine_runs import Served, serve
from late_device import LateDevice, gathered_runner
from msgspec.structs import replace as replace_struct
from penstock.engine.build import Built, create_runner
from penstock.engine.draft_models.drafter import ModelDrafter
from penstock.engine.grammar.store import open_compiler
from penstock.engine.speculation import Speculation
from penstock.scheduler.arrays import Int32
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.messages import EngineConfig, GrammarSpec, SamplingParams, SpeculativeConfig
from penstock.spec.verify import Drafts
from tiny_drafters import (
    Oracle,
    add_mtp,
    copy_last_layer,
    deepseek_oracle,
    eagle1_oracle,
    eagle3_oracle,
    make_eagle1,
    make_eagle3,
    mtp_oracle,
)
from tiny_models import VOCAB_SIZE, make_checkpoint
from transformers import PreTrainedModel

TEXT = torch.randint(3, VOCAB_SIZE, (90,), generator=torch.Generator().manual_seed(4)).tolist()
PROMPTS = [TEXT[:40], TEXT[:1], TEXT[:16] + TEXT[60:80], TEXT[:33], TEXT[:40] + TEXT[70:75]]
NUM_DRAFTS = 3


def eagle3(path: Path, target: PreTrainedModel) -> tuple[SpeculativeConfig, Oracle]:
    tensors = make_eagle3(path / "head")
    return speculative("eagle3", path / "head"), eagle3_oracle(target, tensors)


def eagle3_normed(path: Path, target: PreTrainedModel) -> tuple[SpeculativeConfig, Oracle]:
    tensors = make_eagle3(path / "head", norm_before_residual=True)
    return speculative("eagle3", path / "head"), eagle3_oracle(target, tensors, norm_before_residual=True)


def eagle1(path: Path, target: PreTrainedModel) -> tuple[SpeculativeConfig, Oracle]:
    return speculative("eagle", path / "head"), eagle1_oracle(target, make_eagle1(path / "head"))


def mtp(num_layers: int, style: str) -> Callable[[Path, PreTrainedModel], tuple[SpeculativeConfig, Oracle]]:
    def make(path: Path, target: PreTrainedModel) -> tuple[SpeculativeConfig, Oracle]:
        return speculative("mtp"), mtp_oracle(target, add_mtp(path, num_layers, style), num_layers, style)

    return make


def deepseek(path: Path, target: PreTrainedModel) -> tuple[SpeculativeConfig, Oracle]:
    return speculative("mtp"), deepseek_oracle(path, target)


def speculative(method: str, model: Path | None = None, **changes: object) -> SpeculativeConfig:
    fields: dict[str, object] = {"num_speculative_tokens": NUM_DRAFTS, "adaptive": False, **changes}
    name = None if model is None else str(model)
    return SpeculativeConfig(method=method, model=name, **fields)  # type: ignore[arg-type]


DRAFTERS = {
    "eagle3": eagle3,
    "eagle3 normed": eagle3_normed,
    "eagle": eagle1,
    "mtp": mtp(1, "mimo"),
    "mtp of two": mtp(2, "mimo"),
    "mtp of three": mtp(3, "deepseek"),
    "mtp as Qwen's": mtp(1, "qwen"),
    "DeepSeek's": deepseek,
}


def engine_config(path: Path, drafter: SpeculativeConfig | None, backend: str = "cpu") -> EngineConfig:
    return EngineConfig(
        model_dir=str(path),
        attention_backend=backend,  # type: ignore[arg-type]
        device="cpu",
        num_threads=1,
        max_model_len=96,
        page_size=4,
        num_pages=100,
        max_num_seqs=6,
        max_num_batched_tokens=256,
        speculative=drafter,
    )


def environments(built: Built) -> list[Built]:
    """All at once; in chunks with hits of what is cached; with too few pages."""
    config = built.scheduler_config
    return [
        replace(built, scheduler_config=replace(config, enable_prefix_caching=False)),
        replace(built, scheduler_config=replace(config, max_num_batched_tokens=23)),
        replace(built, scheduler_config=replace(config, groups=(KVGroup("full", num_pages=20),))),
    ]


@contextmanager
def checked_drafts(built: Built, oracle: Oracle) -> Iterator[list[int]]:
    """Compares every draft; the list gets their lengths."""
    lengths: list[int] = []
    draft = ModelDrafter.draft
    buffer = built.runner._token_buffer

    def watched(self: ModelDrafter, slots: Int32, positions: Int32, lens: Int32) -> Drafts:
        known = [buffer[slot, : at + 1].tolist() for slot, at in zip(slots, positions, strict=True)]
        drafts = draft(self, slots, positions, lens)
        assert np.array_equal(drafts.counts, lens)
        ends = np.cumsum(lens)
        for tokens, begin, end in zip(known, ends - lens, ends, strict=True):
            misses = oracle.misses(tokens, drafts.tokens[begin:end].tolist())
            assert max(misses, default=0.0) < 1e-3, (len(tokens), misses)
            lengths.append(int(end - begin))
        return drafts

    with patch.object(ModelDrafter, "draft", watched):
        yield lengths


def greedy(max_tokens: int = 14) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0)


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "cpu") for name in DRAFTERS), ("eagle3", "torch"), ("mtp of two", "torch")]
)
def test_drafts_are_those_of_the_paper_in_every_environment(name: str, backend: str, tmp_path: Path) -> None:
    family = "deepseek_v3" if name == "DeepSeek's" else "qwen3"
    target = make_checkpoint(family, tmp_path, num_hidden_layers=4)
    drafter, oracle = DRAFTERS[name](tmp_path, target)
    built = create_runner(engine_config(tmp_path, drafter, backend))
    try:
        loads = []
        for environment in environments(built):
            with checked_drafts(built, oracle) as lengths:
                served = serve(environment, PROMPTS, greedy(), arrive_every=2)
            assert sum(lengths) > 50
            loads.append(served.load)
        assert [load.prefix_cache_hits > 0 for load in loads] == [False, True, True]
        assert [load.num_preemptions > 0 for load in loads] == [False, False, True]
        if backend == "cpu" and family == "qwen3":
            passes = built.runner._speculation._drafter._passes
            assert all(any(each._graphs.values()) for each in passes), "chains of drafts run from recordings"
    finally:
        built.runner.close()


@pytest.mark.parametrize("name", ["eagle3", "mtp of two"])
def test_a_drafter_that_rested_misses_nothing_when_it_drafts_again(name: str, tmp_path: Path) -> None:
    """Of 17 steps 16 draft nothing; then requests follow that go on from pages which others left like that."""
    target = make_checkpoint("qwen3", tmp_path, num_hidden_layers=4)
    drafter, oracle = DRAFTERS[name](tmp_path, target)
    built = create_runner(engine_config(tmp_path, drafter))
    steps = itertools.count()

    def seldom(self: Speculation, slots: Int32, limits: Int32, *others: object, **named: object) -> Int32:
        return limits if next(steps) % 17 == 0 else np.zeros_like(limits)

    try:
        with patch.object(Speculation, "_worth", seldom), checked_drafts(built, oracle) as lengths:
            first = serve(built, [TEXT[:10], TEXT[20:33]], greedy(40))
        assert 0 < sum(map(bool, lengths)) < 10
        followed = [
            [*prompt, *output[:35], 7]
            for prompt, output in zip((TEXT[:10], TEXT[20:33]), first.outputs, strict=True)
        ]
        with checked_drafts(built, oracle):
            second = serve(built, [TEXT[:10], TEXT[20:33], *followed], greedy(40), arrive_every=45)
        assert second.load.prefix_cache_hits > 60
        with patch.object(Speculation, "_worth", seldom), checked_drafts(built, oracle):
            turns = [TEXT[:10], followed[0], TEXT[20:33], followed[1]]
            assert serve(built, turns, greedy(40), arrive_every=45).load.prefix_cache_hits > 60
    finally:
        built.runner.close()


REQUESTS = {
    "greedy": SamplingParams(max_tokens=20, temperature=0.0),
    "seeded": SamplingParams(max_tokens=20, temperature=0.7, seed=1),
    "truncated": SamplingParams(max_tokens=20, temperature=0.9, top_p=0.9, top_k=40, min_p=0.01, seed=2),
    "penalties": SamplingParams(max_tokens=20, temperature=0.0, repetition_penalty=1.4, presence_penalty=0.5),
    "grammar": SamplingParams(
        max_tokens=20, temperature=1.1, seed=9, grammar=GrammarSpec("regex", "([a-z]{3} ){9}")
    ),
    "logprobs": SamplingParams(max_tokens=20, temperature=0.0, logprobs=3, prompt_logprobs=1),
}
MIXED = [TEXT[: 12 + 5 * number] for number in range(len(REQUESTS))]
LOSSLESS = {
    "eagle3": (eagle3, 4),
    "eagle": (eagle1, 4),
    "mtp of two": (mtp(2, "mimo"), 4),
    "mtp mostly right": (None, 1),
}


@pytest.mark.parametrize("adaptive", [False, True], ids=["all", "adaptive"])
@pytest.mark.parametrize("name", LOSSLESS)
def test_a_model_that_drafts_changes_no_answer(name: str, adaptive: bool, tmp_path: Path) -> None:
    make, num_layers = LOSSLESS[name]
    target = make_checkpoint("qwen3", tmp_path, num_hidden_layers=num_layers)
    drafter = speculative("mtp")
    if make is None:
        copy_last_layer(tmp_path)
    else:
        drafter, _ = make(tmp_path, target)
    compile_grammar = open_compiler(tmp_path, VOCAB_SIZE)
    alone = create_runner(engine_config(tmp_path, None, "torch"))
    slow = replace(alone, scheduler_config=replace(alone.scheduler_config, enable_prefix_caching=False))
    sampling = list(REQUESTS.values())
    try:
        expected = [
            serve(slow, [prompt], how, steps_in_flight=1, compile_grammar=compile_grammar)
            for prompt, how in zip(MIXED, sampling, strict=True)
        ]
    finally:
        alone.runner.close()
    wanted = [served.outputs[0] for served in expected]
    built = create_runner(engine_config(tmp_path, replace_struct(drafter, adaptive=adaptive)))
    try:
        loads = []
        for environment in environments(built):
            for depth, given in ((2, 0), (1, 6)):  # answers as they begin, and resumed
                served = serve(
                    environment,
                    [prompt + output[:given] for prompt, output in zip(MIXED, wanted, strict=True)],
                    sampling,
                    steps_in_flight=depth,
                    arrive_every=2,
                    num_prompt_tokens=[len(prompt) for prompt in MIXED],
                    compile_grammar=compile_grammar,
                )
                assert dict(zip(REQUESTS, served.outputs, strict=True)) == dict(
                    zip(REQUESTS, wanted, strict=True)
                )
                loads.append(served.load)
        if name == "mtp mostly right" and not adaptive:  # else time decides
            assert all(load.num_accepted_tokens > 0 for load in loads)
    finally:
        built.runner.close()


def test_hits_preemption_chunks_and_resuming_lower_no_acceptance(tmp_path: Path) -> None:
    """Drafts of a layer that does what the target does are right as often, however its keys came to be there."""
    make_checkpoint("qwen3", tmp_path, num_hidden_layers=1)
    copy_last_layer(tmp_path)
    built = create_runner(engine_config(tmp_path, speculative("mtp")))
    how = greedy(24)
    prompts = [TEXT[:40], [*TEXT[:40], 5], TEXT[:28] + TEXT[60:70], TEXT[3:30]]
    try:
        cold, chunks, few_pages = environments(built)
        rates = {"alone": rate([serve(cold, [prompt], how) for prompt in prompts])}
        outputs = [serve(cold, [prompt], how).outputs[0] for prompt in prompts]
        rates["chunks and hits"] = rate([serve(chunks, prompts, how, arrive_every=9)])
        resumed = [prompt + output[:10] for prompt, output in zip(prompts, outputs, strict=True)]
        counts = [len(prompt) for prompt in prompts]
        preempted = serve(few_pages, prompts, how)
        assert preempted.load.num_preemptions > 0
        rates["preempted"] = rate([preempted])
        rates["resumed"] = rate([serve(chunks, resumed, how, num_prompt_tokens=counts, arrive_every=4)])
        # A conversation goes on behind what was answered: pages with keys of accepted and of drafted tokens.
        followed = [prompt + output + [7] for prompt, output in zip(prompts, outputs, strict=True)]
        rates["followed, cold"] = rate([serve(cold, [prompt], how) for prompt in followed])
        warm = replace(built, scheduler_config=replace(cold.scheduler_config, enable_prefix_caching=True))
        rates["followed, hits"] = rate([conversation(warm, prompts, followed, how)])
    finally:
        built.runner.close()
    assert rates["alone"] > 0.6
    for name, each in rates.items():
        reference = rates["followed, cold" if name.startswith("followed") else "alone"]
        assert each > reference - 0.1, rates


def conversation(
    built: Built, prompts: list[list[int]], followed: list[list[int]], how: SamplingParams
) -> Served:
    """Both turns of each conversation, the second right behind the first."""
    turns = [turn for pair in zip(prompts, followed, strict=True) for turn in pair]
    served = serve(built, turns, how, arrive_every=30)
    assert served.load.prefix_cache_hits > sum(map(len, prompts))
    return served


def rate(runs: list[Served]) -> float:
    """The share of drafted tokens that were accepted."""
    drafted = sum(run.load.num_draft_tokens for run in runs)
    return sum(run.load.num_accepted_tokens for run in runs) / drafted


def test_a_late_device_drafts_the_same_and_is_only_waited_for_by_events(tmp_path: Path) -> None:
    make_checkpoint("qwen3", tmp_path, num_hidden_layers=1)
    copy_last_layer(tmp_path)
    drafter = speculative("mtp")
    how = [
        SamplingParams(max_tokens=20, temperature=0.0),
        SamplingParams(max_tokens=20, temperature=0.8, seed=4),
    ]
    prompts = [TEXT[:30], TEXT[:33]]
    tight = {"num_pages": 26, "max_num_seqs": 4, "max_num_batched_tokens": 13, "max_model_len": 64}
    with gathered_runner(tmp_path, None, **tight) as plain:
        expected = serve(plain, prompts, how).outputs
    with gathered_runner(tmp_path, None, speculative=drafter, **tight) as at_once:
        reference = serve(at_once, prompts, how)
    device = LateDevice()
    with gathered_runner(tmp_path, device, speculative=drafter, **tight) as late:
        device.waits.clear()
        served = serve(late, prompts, how)
    assert served.outputs == reference.outputs == expected
    assert served.load.num_accepted_tokens == reference.load.num_accepted_tokens > 10
    assert {why for thread, why in device.waits if thread == "device"} <= {"an event"}


@contextmanager
def recorded_drafts() -> Iterator[list[list[int]]]:
    drafted: list[list[int]] = []
    draft = ModelDrafter.draft

    def watched(self: ModelDrafter, slots: Int32, positions: Int32, lens: Int32) -> Drafts:
        drafts = draft(self, slots, positions, lens)
        drafted.append(drafts.tokens.tolist())
        return drafts

    with patch.object(ModelDrafter, "draft", watched):
        yield drafted


def test_many_layers_draft_the_same_on_a_late_device(tmp_path: Path) -> None:
    """What a step sends for all of them lies where it lies until the last one has read it."""
    target = make_checkpoint("qwen3", tmp_path, num_hidden_layers=1)
    drafter, _ = mtp(5, "mimo")(tmp_path, target)
    drafter = replace_struct(drafter, num_speculative_tokens=5)
    options = {"num_pages": 60, "max_num_seqs": 4, "max_num_batched_tokens": 13, "max_model_len": 64}
    drafts = []
    for device in (None, LateDevice()):
        with (
            gathered_runner(tmp_path, device, speculative=drafter, **options) as built,
            recorded_drafts() as drafted,
        ):
            serve(built, [TEXT[:30], TEXT[:33], TEXT[40:42]], greedy(20))
        drafts.append(drafted)
    assert drafts[0] == drafts[1]
    assert sum(map(len, drafts[0])) > 100
