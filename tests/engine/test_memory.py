"""What a device's memory goes to is measured before its KV pages are made, and a device that is too small says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_runs import serve
from msgspec.structs import replace
from penstock.engine import build, kv_pool, kv_sizing
from penstock.engine.choices import choose
from penstock.engine.errors import ConfigurationError
from penstock.engine.kv_pool import GIB
from penstock.engine.memory import MemoryAccount, measure_graphs, take_account
from penstock.engine.model_config import read_model_config
from penstock.engine.trial import Trial
from penstock.kernels.select import select_attention
from penstock.scheduler.messages import EngineConfig, SamplingParams
from tiny_models import make_checkpoint

ACCOUNT = MemoryAccount(
    total=100 * GIB, free=80 * GIB, weights=16 * GIB, activations=3 * GIB, graphs=GIB, utilization=0.9
)


class FakeMeter:
    """A device of 100 GiB: what is `held` goes when its holder lets it, what is `kept` for tensors at a release."""

    def __init__(self) -> None:
        self.held = 20 * GIB
        self.kept = GIB  # left over from loading
        self.tensors = 0
        self.released = 0

    def total(self) -> int:
        return 100 * GIB

    def free(self) -> int:
        return self.total() - self.held - self.kept

    def reset_peak(self) -> None:
        self.tensors = 0

    def peak(self) -> int:
        return self.tensors

    def release(self) -> None:
        self.kept = 0
        self.released += 1


def account_of(meter: FakeMeter, **changes: object) -> tuple[MemoryAccount, list[int]]:
    captured: list[int] = []

    def largest_step() -> None:
        meter.tensors = 2 * GIB
        meter.kept += 3 * GIB  # fragments, and what libraries took

    def capture(size: int) -> bool:
        captured.append(size)
        meter.held += (GIB if len(captured) == 1 else 0) + GIB // 16
        return True

    def release() -> None:
        meter.held -= GIB + GIB // 8

    steps: dict = {
        "weights": 16 * GIB,
        "utilization": 0.9,
        "largest_step": largest_step,
        "capture": capture,
        "sizes": (1, 2, 4, 8),
        "release": release,
    }
    return take_account(meter, **(steps | changes)), captured


def test_everything_is_measured_and_pages_get_the_rest() -> None:
    meter = FakeMeter()
    account, captured = account_of(meter)
    assert account == MemoryAccount(
        total=100 * GIB,
        free=80 * GIB,
        weights=16 * GIB,
        activations=3 * GIB,
        graphs=GIB + 4 * (GIB // 16),
        utilization=0.9,
    )
    assert captured == [8, 4], "the largest first, and the second for what each further one takes"
    assert account.kv_cache == 80 * GIB - account.spare - 3 * GIB - account.graphs
    assert meter.free() == 80 * GIB, "what was measured is given back"
    # Nothing is spent twice: at the end exactly the spare is left.
    used = meter.held + account.activations + account.graphs + account.kv_cache
    assert meter.total() - used == account.spare


def test_no_recordings_take_no_memory() -> None:
    account, captured = account_of(FakeMeter(), sizes=(), release=lambda: None)
    assert (account.graphs, captured) == (0, [])
    assert measure_graphs(FakeMeter(), lambda size: False, (1, 2, 4)) == 0


def test_a_step_that_does_not_fit_names_what_to_lower() -> None:
    def largest_step() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConfigurationError, match="lower --max-num-batched-tokens or --max-num-seqs") as error:
        account_of(FakeMeter(), largest_step=largest_step)
    assert "16.00 GiB of weights, 80.00 GiB were free" in str(error.value)


def test_a_device_with_nothing_left_shows_the_account() -> None:
    full = MemoryAccount(
        total=24 * GIB, free=5 * GIB, weights=16 * GIB, activations=3 * GIB, graphs=GIB, utilization=0.9
    )
    with pytest.raises(ConfigurationError) as error:
        _ = full.kv_cache
    message = str(error.value)
    assert "no memory is left for the KV cache: of 24.00 GiB weights take 16.00 GiB" in message
    assert "activations 3.00 GiB, graphs 1.00 GiB, others 3.00 GiB, and 2.40 GiB stay free" in message
    assert "raise --gpu-memory-utilization" in message


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    make_checkpoint("qwen3", path)
    return path


def test_pages_are_counted_from_the_account(path: Path) -> None:
    config = EngineConfig(model_dir=str(path), device="cpu", max_num_seqs=1 << 20)
    model_config = read_model_config(path)
    groups = kv_pool.group_layers(model_config, 512)
    sized = kv_sizing.size_kv_cache(config, model_config, choose(config, model_config), groups, 512, ACCOUNT)
    _, pages, need = sized
    assert sum(count * size for count, size in zip(pages, need.page_bytes, strict=True)) <= ACCOUNT.kv_cache
    assert (pages[0] + 1) * need.page_bytes[0] > ACCOUNT.kv_cache
    small = MemoryAccount(
        total=GIB, free=GIB // 2 + 1000, weights=0, activations=0, graphs=0, utilization=0.5
    )
    with pytest.raises(ConfigurationError, match=r"are available \(weights take"):
        kv_sizing.size_kv_cache(
            replace(config, max_model_len=512), model_config, choose(config, model_config), groups, 512, small
        )


@pytest.fixture
def trial(path: Path) -> Iterator[Trial]:
    config = EngineConfig(model_dir=str(path), device="cpu", num_threads=1, page_size=4)
    model_config = read_model_config(path)
    choices = choose(config, model_config)
    groups = kv_pool.group_layers(model_config, 64)
    spec = build.attention_spec(config, model_config, choices, None)
    attention = [select_attention("auto", choices.device, spec)]
    with torch.inference_mode():
        ops = build.load_ops("auto", choices, lambda phase, fraction: None)
        model, _ = build.load_model(
            config, model_config, choices, ops, attention, groups, 64, lambda fraction: None
        )
        yield Trial(
            model,
            attention,
            kv_sizing.allocate_kv_cache(config, model_config, choices, groups, (1,)),
            max_model_len=64,
            page_size=4,
            max_num_batched_tokens=150,
            max_num_seqs=9,
            recorder=ops.recorder(),
            sizes=(1, 4),
            device=choices.device,
        )


def test_the_trial_runs_the_largest_step_and_recordings_on_one_page(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    forward, logits = trial._model.forward, trial._model.logits
    monkeypatch.setattr(
        trial._model, "forward", lambda batch: (seen.append((len(batch.tokens), 0)), forward(batch))[1]
    )
    monkeypatch.setattr(
        trial._model, "logits", lambda hidden: (seen.append((0, len(hidden))), logits(hidden))[1]
    )
    trial.largest_step()
    assert seen == [(150, 0), (0, 9)]
    assert trial.capture(4)
    assert trial.capture(1)
    trial.release()
    assert not trial.capture(1)


def test_an_engine_whose_memory_was_measured_serves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way through `create_runner` with the measuring that CUDA has, on a CPU that is said to be one."""
    prompt = list(range(10, 40))
    how = SamplingParams(max_tokens=8, temperature=0.0)
    config = EngineConfig(
        model_dir=str(path), device="cpu", num_threads=1, page_size=4, max_num_seqs=4, max_model_len=96
    )
    plain = build.create_runner(config)
    expected = serve(plain, [prompt], how).outputs
    plain.runner.close()
    monkeypatch.setattr(build, "has_own_memory", lambda device: True)
    monkeypatch.setattr(kv_sizing, "CudaMeter", lambda device: FakeMeter())
    measured = build.create_runner(replace(config, cudagraph_capture_sizes=[1, 4]))
    assert serve(measured, [prompt], how).outputs == expected
    assert measured.info.memory_bytes["total"] == 100 * GIB
    assert list(measured.info.startup_seconds) == [
        "config", "kernels", "weights", "memory", "kv_cache", "graphs", "warm_up",
    ]  # fmt: skip
    measured.runner.close()
