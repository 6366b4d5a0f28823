"""Several ranks compute what one does: every family, shared out within layers and between them."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import Served, serve
from oracle_drafter import oracle_speculation
from penstock.engine import assemble, kv_pool, weights
from penstock.engine.build import create_runner, load_model
from penstock.engine.choices import choose
from penstock.engine.device_thread import DeviceThread
from penstock.engine.errors import ConfigurationError
from penstock.engine.link import FrontEndLink
from penstock.engine.model_config import read_model_config
from penstock.engine.new_slot import NewSlot
from penstock.engine.parallel import leader
from penstock.engine.parallel.grid import (
    Grid,
    layers_of,
    refuse_too_few_devices,
    refuse_what_does_not_divide,
)
from penstock.engine.parallel.group import Group, open_store
from penstock.engine.parallel.messages import (
    EXIT_BAD_CONFIGURATION,
    decode_to_follower,
    encode,
    plan_of,
    step_of,
)
from penstock.engine.parallel.shard import Part, Shard
from penstock.engine.runner import ModelRunner
from penstock.engine.step_runner import StepHandle
from penstock.engine.weights import DummyWeights
from penstock.kernels.reference import TorchOps
from penstock.scheduler.messages import EngineConfig, PoolingParams, SamplingParams
from penstock.scheduler.plan import PageUpdates, StepPlan, StepResult
from pooling_runs import pool
from rank_threads import led
from simulation import make_request
from tiny_encoders import make_encoder
from tiny_models import VOCAB_SIZE, make_checkpoint

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500_000.0,
}
BIASES = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
SLIDING = {"use_sliding_window": True, "sliding_window": 13, "max_window_layers": 1, "num_hidden_layers": 3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biases-tied": ("llama", {"rope_parameters": LLAMA3, **BIASES}),
    "llama-odd-vocabulary": ("llama", {"vocab_size": 323}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "mistral-sliding": ("mistral", {"sliding_window": 13}),
    "qwen2-last-layers-sliding": ("qwen2", SLIDING),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
}
SIX_KV_HEADS = {"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 6}
TENSOR, STAGES, BOTH = (2, 1), (1, 2), (2, 2)
CASES = [(name, grid) for name in MODELS for grid in (TENSOR, STAGES)]
# Two ranks a KV head; three stages, of which the first knows no sliding layer.
CASES += [("llama", BOTH), ("llama", (4, 1)), ("qwen2-last-layers-sliding", (1, 3))]

LONG = torch.randint(3, VOCAB_SIZE, (60,), generator=torch.Generator().manual_seed(7)).tolist()
PROMPTS = [LONG[:3], LONG[:41], [*LONG[:33], 9, 8, 7], LONG[50:57], LONG[:37], LONG[20:50]]
OUTPUT_TOKENS = 16
SAMPLINGS = [
    SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0),
    SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0, prompt_logprobs=VOCAB_SIZE),
    SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.9, top_p=0.9, seed=5),
    SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.9, seed=6, presence_penalty=0.5, logprobs=3),
    SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=1.1, seed=7),
    SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0, logprobs=0),
]


def engine_config(path: Path, tensor: int = 1, stages: int = 1, **options: Any) -> EngineConfig:
    """Few pages and tokens a step: prompts are cut into chunks, and requests preempt each other."""
    config = {
        "attention_backend": "cpu",
        "device": "cpu",
        "num_threads": 1,
        "max_model_len": 96,
        "page_size": 4,
        "num_pages": 26,
        "max_num_seqs": 5,
        "max_num_batched_tokens": 17,
        **options,
    }
    return EngineConfig(
        model_dir=str(path), tensor_parallel_size=tensor, pipeline_parallel_size=stages, **config
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {}
    for name, (family, overrides) in MODELS.items():
        paths[name] = tmp_path_factory.mktemp(name)
        make_checkpoint(family, paths[name], **overrides)
    return paths


@pytest.fixture(scope="module")
def alone(checkpoints: dict[str, Path]) -> dict[str, Served]:
    """What one rank makes of the prompts."""
    served = {}
    for name, path in checkpoints.items():
        built = create_runner(engine_config(path))
        served[name] = serve(built, PROMPTS, SAMPLINGS, arrive_every=4)
        built.runner.close()
    return served


def logits_of_prompt(served: Served, request: int) -> np.ndarray:
    """(prompt tokens - 1, vocabulary) log probabilities, in the order of ids."""
    rows = [row for row in served.logprobs[request] if row.is_prompt]
    ids = np.concatenate([row.top_ids for row in rows])
    values = np.concatenate([row.top_logprobs for row in rows])
    return np.take_along_axis(values, np.argsort(ids, axis=1), axis=1)


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_ranks_give_the_logits_and_tokens_of_one(
    checkpoints: dict[str, Path],
    alone: dict[str, Served],
    tmp_path: Path,
    name: str,
    grid: tuple[int, int],
) -> None:
    with led(engine_config(checkpoints[name], *grid), tmp_path) as built:
        served = serve(built, PROMPTS, SAMPLINGS, arrive_every=4, steps_in_flight=max(2, grid[1]))
    assert served.outputs == alone[name].outputs
    np.testing.assert_allclose(logits_of_prompt(served, 1), logits_of_prompt(alone[name], 1), atol=1e-4)
    # What is shared out did matter: chunks, prefix hits, and steps that had both.
    assert sum(request.num_cached_tokens > 0 for request in served.requests) >= 2
    assert any(0 < plan.num_decode_rows < len(plan.slots) for plan in served.plans)
    assert built.info.kv_cache_bytes >= 26 * 4 * 2 * 4


def test_drafts_are_verified_by_all_ranks(
    checkpoints: dict[str, Path], alone: dict[str, Served], tmp_path: Path
) -> None:
    texts = [prompt + output for prompt, output in zip(PROMPTS, alone["llama"].outputs, strict=True)]
    with led(engine_config(checkpoints["llama"], *TENSOR), tmp_path) as built:
        assert isinstance(built.runner, ModelRunner)
        built.runner._speculation = oracle_speculation(
            built.runner.num_slots, texts, max_draft_tokens=4, wrong_every=4, vocab_size=VOCAB_SIZE
        )
        drafting = replace(built, scheduler_config=replace(built.scheduler_config, max_draft_tokens=4))
        served = serve(drafting, PROMPTS, SAMPLINGS, arrive_every=4)
    assert served.outputs == alone["llama"].outputs
    assert 0 < served.load.num_accepted_tokens < served.load.num_draft_tokens


def test_ranks_keep_the_tokens_with_the_next_step_planned_or_not(
    checkpoints: dict[str, Path], alone: dict[str, Served], tmp_path: Path
) -> None:
    with led(engine_config(checkpoints["llama"], *TENSOR), tmp_path) as built:
        for steps_in_flight in (1, 2):
            served = serve(built, PROMPTS, SAMPLINGS, steps_in_flight=steps_in_flight)
            assert served.outputs == alone["llama"].outputs


@pytest.mark.parametrize("grid", [TENSOR, STAGES])
def test_ranks_embed_as_one_does(checkpoints: dict[str, Path], tmp_path: Path, grid: tuple[int, int]) -> None:
    wanted = [PoolingParams(task="embed")] * 3
    one = create_runner(engine_config(checkpoints["qwen3-tied"]))
    expected = pool(one, PROMPTS[:3], wanted)
    one.runner.close()
    with led(engine_config(checkpoints["qwen3-tied"], *grid), tmp_path) as built:
        found = pool(built, PROMPTS[:3], wanted)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("grid", [TENSOR, STAGES])
def test_dummy_weights_are_those_of_one_rank(
    checkpoints: dict[str, Path], tmp_path: Path, grid: tuple[int, int]
) -> None:
    options = {"load_format": "dummy", "seed": 3}
    one = create_runner(engine_config(checkpoints["llama"], **options))
    expected = serve(one, PROMPTS, SAMPLINGS)
    one.runner.close()
    with led(engine_config(checkpoints["llama"], *grid, **options), tmp_path) as built:
        found = serve(built, PROMPTS, SAMPLINGS)
    np.testing.assert_allclose(logits_of_prompt(found, 1), logits_of_prompt(expected, 1), atol=1e-4)
    assert found.outputs == expected.outputs


@pytest.mark.parametrize("shape", [(7, 5), (2100, 1000)])
def test_parts_of_noise_are_cut_from_the_whole(shape: tuple[int, int]) -> None:
    source = DummyWeights({"w": shape}, seed=1, device=torch.device("cpu"), dtype=torch.float32)
    whole = source.tensor("w", shape)
    assert torch.equal(source.tensor("w", shape, Part(0, 3, 6)), whole[3:6])
    assert torch.equal(source.tensor("w", shape, Part(1, 2, 4)), whole[:, 2:4])
    padded = source.tensor("w", shape, Part(0, shape[0] - 2, shape[0] + 2))
    assert torch.equal(padded[:2], whole[-2:])
    assert not padded[2:].any()


# ------------------------------------------------------------------------------------------------- loading a shard


class CountedFile:
    """A safetensors file that counts what is read of each tensor."""

    def __init__(self, file: Any, read: Counter[str]) -> None:
        self.file, self.read = file, read

    def __enter__(self) -> CountedFile:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def keys(self) -> list[str]:
        return self.file.keys()

    def get_tensor(self, name: str) -> torch.Tensor:
        tensor = self.file.get_tensor(name)
        self.read[name] += tensor.nbytes
        return tensor

    def get_slice(self, name: str) -> CountedSlice:
        return CountedSlice(self.file.get_slice(name), name, self.read)


class CountedSlice:
    def __init__(self, view: Any, name: str, read: Counter[str]) -> None:
        self.view, self.name, self.read = view, name, read

    def get_shape(self) -> list[int]:
        return self.view.get_shape()

    def __getitem__(self, places: Any) -> torch.Tensor:
        tensor = self.view[places]
        self.read[self.name] += tensor.nbytes
        return tensor


def read_by(monkeypatch: pytest.MonkeyPatch, path: Path, shard: Shard | None) -> Counter[str]:
    """Bytes that loading the shard reads of each stored tensor."""
    read: Counter[str] = Counter()
    real = weights.safe_open
    config, model_config = engine_config(path), read_model_config(path)
    groups = kv_pool.group_layers(model_config, 96)
    if shard is not None:
        groups = kv_pool.own_layers(groups, shard.layers)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "safe_open", lambda *args, **more: CountedFile(real(*args, **more), read))
        load_model(
            config,
            model_config,
            choose(config, model_config),
            TorchOps(),
            [None] * len(groups.windows),  # nothing attends
            groups,
            96,
            lambda fraction: None,
            shard,
        )
    return read


def test_a_rank_reads_its_shard_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path]
) -> None:
    path = checkpoints["llama-odd-vocabulary"]
    everything = read_by(monkeypatch, path, None)
    ranks = [read_by(monkeypatch, path, Shard(range(2), tensor=Group(rank, 2))) for rank in range(2)]
    for name, size in everything.items():
        parts = [read[name] for read in ranks]
        if name.endswith("norm.weight"):
            assert parts == [size, size]
        else:
            assert sum(parts) == size
            if "embed_tokens" not in name and "lm_head" not in name:
                assert parts == [size // 2, size // 2]


def test_a_stage_reads_its_layers_and_its_end_of_the_model(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path]
) -> None:
    path = checkpoints["llama"]
    everything = read_by(monkeypatch, path, None)
    first = read_by(monkeypatch, path, Shard(range(1), last=False))
    last = read_by(monkeypatch, path, Shard(range(1, 2), first=False))
    assert first + last == everything
    assert not set(first) & set(last)
    assert {name for name in first if ".layers." not in name} == {"model.embed_tokens.weight"}


# --------------------------------------------------------------------------------------------------------- failures


class FailingRunner:
    """Every step raises."""

    num_slots = 64

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.launched = 0
        self.thread = DeviceThread()

    def launch(self, plan: StepPlan) -> StepHandle:
        self.launched += 1
        return self.thread.submit(self.fail)

    def fail(self) -> StepResult:
        raise self.error

    def close(self) -> None:
        self.thread.close()


@pytest.mark.parametrize(("grid", "error"), [(TENSOR, torch.OutOfMemoryError), (STAGES, RuntimeError)])
def test_a_failed_step_of_several_ranks_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
    checkpoints: dict[str, Path],
    grid: tuple[int, int],
    error: type[Exception],
) -> None:
    one = create_runner(engine_config(checkpoints["llama"]))
    one.runner.close()
    runner = FailingRunner(error("one rank failed, the others wait"))
    monkeypatch.setattr(assemble, "create", lambda config, progress: replace(one, runner=runner))
    link = FrontEndLink([], "engine")
    engine = assemble.assemble(
        engine_config(checkpoints["llama"], *grid, async_scheduling=False),
        incarnation=1,
        link=link,
        progress=lambda phase, fraction: None,
        imports_s=0.0,
    )
    engine._scheduler.add(make_request(0, range(5)))
    with pytest.raises(error, match="one rank failed"):
        engine.run()
    assert runner.launched == 1
    engine.close()
    link.close()


class EndedProcess:
    """As `subprocess.Popen`, of a process that is no more."""

    def __init__(self, status: int) -> None:
        self.returncode = status

    def poll(self) -> int:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return self.returncode


@pytest.mark.parametrize(
    ("status", "grace_s", "lost"),
    [(1, 60.0, True), (EXIT_BAD_CONFIGURATION, 0.01, True), (EXIT_BAD_CONFIGURATION, 60.0, False)],
)
def test_a_rank_is_lost_when_it_ends_unless_the_leader_hears_that_it_cannot_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, grace_s: float, lost: bool
) -> None:
    reasons: SimpleQueue[str] = SimpleQueue()
    monkeypatch.setattr(leader.subprocess, "Popen", lambda *args, **more: EndedProcess(status))
    monkeypatch.setattr(leader, "GRACE_S", grace_s)
    (tmp_path / "ranks").mkdir()
    followers = leader.Followers(
        engine_config(tmp_path, 2), Grid(2, 1), tmp_path / "ranks", "store", reasons.put
    )
    followers.watch()
    if lost:
        assert reasons.get(timeout=30.0) == f"rank 1 ended (exit status {status})"
    followers.close(at_once=True)
    for thread in threading.enumerate():
        if thread.name == "watch-rank-1":
            thread.join(30.0)
    assert reasons.empty()


# ------------------------------------------------------------------------------------------------------- messages


def test_a_plan_survives_its_message() -> None:
    sampling = SamplingParams(max_tokens=9, prompt_logprobs=2, temperature=0.7, seed=1)
    plan = StepPlan(
        step=5,
        slots=np.array([3, 1], np.int32),
        starts=np.array([7, 0], np.int32),
        lens=np.array([1, 4], np.int32),
        sample=np.array([True, False]),
        num_decode_rows=1,
        num_tokens=5,
        pages=[PageUpdates(*(np.array([i], np.int32) for i in range(3)))],
        left=[6, 2],
        decode_tokens=np.array([42], np.int32),
    )
    new = [
        NewSlot(1, np.arange(4, dtype=np.int32), 3, sampling, PoolingParams(task="embed"), None, "salt", None)
    ]
    message = decode_to_follower(encode(step_of(plan, new, None)))
    again, (slot,), bound = plan_of(message)
    assert bound is None
    for name in ("step", "num_decode_rows", "num_tokens", "left"):
        assert getattr(again, name) == getattr(plan, name)
    for name in ("slots", "starts", "lens", "sample", "decode_tokens"):
        np.testing.assert_array_equal(getattr(again, name), getattr(plan, name))
        assert getattr(again, name).dtype == getattr(plan, name).dtype
    assert [
        int(each[0]) for each in (again.pages[0].slots, again.pages[0].indexes, again.pages[0].pages)
    ] == [*range(3)]
    assert slot.tokens.tolist() == [0, 1, 2, 3]
    assert (slot.slot, slot.num_prompt_tokens, slot.pooling) == (1, 3, PoolingParams(task="embed"))
    assert slot.sampling.prompt_logprobs == 2


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("grid", "overrides", "said"),
    [
        (Grid(3, 1), {}, "--tensor-parallel-size 3: 4 attention heads do not divide by it"),
        (Grid(3, 1), {}, "use 1, 2 or 4"),
        (Grid(4, 1), SIX_KV_HEADS, "6 KV heads neither divide by it"),
        (Grid(2, 1), {"intermediate_size": 97}, "intermediate_size 97 does not divide by it: use 1"),
        (Grid(1, 3), {}, "--pipeline-parallel-size 3: the model has 2 layers"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(
    tmp_path: Path, grid: Grid, overrides: dict[str, Any], said: str
) -> None:
    make_checkpoint("llama", tmp_path, **overrides)
    with pytest.raises(ConfigurationError) as error:
        create_runner(engine_config(tmp_path, grid.tensor, grid.stages))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_latent_attention_is_refused_on_tensor_parallel_ranks(tmp_path: Path) -> None:
    make_checkpoint("deepseek_v3", tmp_path)
    config = read_model_config(tmp_path)
    refuse_what_does_not_divide(Grid(1, 2), config)
    with pytest.raises(ConfigurationError, match=r"latent attention is not shared out .*: use 1$"):
        refuse_what_does_not_divide(Grid(2, 1), config)


def test_more_ranks_than_gpus_are_refused() -> None:
    refuse_too_few_devices(Grid(2, 2), 4)
    with pytest.raises(ConfigurationError, match=r"needs 4 GPUs, torch sees 3 here"):
        refuse_too_few_devices(Grid(2, 2), 3)


def test_heads_may_be_shared_out_down_to_one_and_kv_heads_beyond(checkpoints: dict[str, Path]) -> None:
    config = read_model_config(checkpoints["llama-one-kv-head"])
    for tensor in (1, 2, 4):
        refuse_what_does_not_divide(Grid(tensor, 1), config)


def test_encoders_are_refused(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path)
    with pytest.raises(ConfigurationError, match="encoder, which runs on one device"):
        assemble.create(engine_config(tmp_path, 2), lambda phase, fraction: None)


@pytest.mark.parametrize(("stages", "layers"), [(1, 5), (2, 5), (3, 8), (4, 4)])
def test_every_layer_has_one_stage_and_stages_differ_by_one_at_most(stages: int, layers: int) -> None:
    runs = [layers_of(stage, stages, layers) for stage in range(stages)]
    assert [layer for run in runs for layer in run] == list(range(layers))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1
    assert len(runs[-1]) == min(map(len, runs))


def test_a_rank_whose_peer_stays_away_stops_waiting(tmp_path: Path) -> None:
    groups = [Group(rank, 2) for rank in range(2)]
    threads = [
        threading.Thread(
            target=group.connect,
            args=(open_store(str(tmp_path / "store"), 2), "pair", torch.device("cpu"), timedelta(seconds=2)),
        )
        for group in groups
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(RuntimeError, match=r"[Tt]imed? ?out"):
        groups[0].all_reduce(torch.ones(3))
