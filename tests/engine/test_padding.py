"""Decodes in batches filled up to recorded sizes: the tokens of steps that are not, and nobody's pages touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_runs import serve
from late_device import LateDevice, gathered_runner
from msgspec.structs import replace
from penstock.engine.build import create_runner
from penstock.engine.graphs import CapturedForward, PaddedSizes, default_sizes
from penstock.kernels.interface import NotRecordable
from penstock.scheduler.messages import EngineConfig, SamplingParams
from rank_threads import led_late
from tiny_models import VOCAB_SIZE, make_checkpoint

LONG = torch.randint(3, VOCAB_SIZE, (80,), generator=torch.Generator().manual_seed(3)).tolist()
PROMPTS = [LONG[:5], LONG[:37], LONG[20:50], LONG[:30], LONG[10:31], LONG[:24], LONG[40:60]]
HOW = [
    SamplingParams(max_tokens=14 + i, temperature=0.0 if i % 2 else 0.9, seed=i, logprobs=i % 3 - 1)
    for i in range(len(PROMPTS))
]
TIGHT = {"num_pages": 26, "max_num_seqs": 5, "max_num_batched_tokens": 13}
SIZES = (1, 3, 8)  # batches of 2, 4 and 5 are filled up


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    make_checkpoint("qwen3", path)
    return path


class Rerun:
    """A recording that does the work again, as it was bound when it was recorded."""

    def __init__(self, recorder: RerunRecorder, work: Callable[[], torch.Tensor]) -> None:
        self._recorder = recorder
        self._work = work
        self.result = work()

    def replay(self) -> torch.Tensor:
        self._recorder.replayed += 1
        self.result = self._work()
        return self.result


class RerunRecorder:
    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def record(self, work: Callable[[], torch.Tensor]) -> Rerun:
        self.recorded += 1
        return Rerun(self, work)


class Refuses:
    def record(self, work: Callable[[], torch.Tensor]) -> Rerun:
        raise NotRecordable("nothing can be recorded")


def test_padded_steps_give_the_tokens_and_scores_of_steps_that_are_not(path: Path) -> None:
    with gathered_runner(path, None, **TIGHT) as plain:
        expected = serve(plain, PROMPTS, HOW, arrive_every=2)
    recorder = RerunRecorder()
    with gathered_runner(path, None, recorder=recorder, capture_sizes=SIZES, **TIGHT) as padded:
        assert recorder.recorded == len(SIZES)
        served = serve(padded, PROMPTS, HOW, arrive_every=2)
    assert recorder.replayed > 10
    assert served.outputs == expected.outputs
    for mine, theirs in zip(served.logprobs, expected.logprobs, strict=True):
        assert [row.top_ids.tolist() for row in mine] == [row.top_ids.tolist() for row in theirs]


def test_padded_steps_on_a_late_device_give_the_same_tokens(path: Path) -> None:
    with gathered_runner(path, None, **TIGHT) as plain:
        expected = serve(plain, PROMPTS, HOW)
    recorder = RerunRecorder()
    with gathered_runner(path, LateDevice(), recorder=recorder, capture_sizes=SIZES, **TIGHT) as padded:
        assert serve(padded, PROMPTS, HOW).outputs == expected.outputs
    assert recorder.replayed > 10


def test_padded_steps_of_two_ranks_give_the_same_tokens(path: Path, tmp_path: Path) -> None:
    with gathered_runner(path, None, **TIGHT) as plain:
        expected = serve(plain, PROMPTS, HOW)
    recorders: list[RerunRecorder] = []

    def recorder() -> RerunRecorder:
        recorders.append(RerunRecorder())
        return recorders[-1]

    devices = [LateDevice(), LateDevice()]
    with led_late(path, tmp_path, devices, recorder=recorder, capture_sizes=SIZES, **TIGHT) as padded:
        assert serve(padded, PROMPTS, HOW).outputs == expected.outputs
    assert [each.recorded for each in recorders] == [len(SIZES)] * 2
    assert recorders[0].replayed == recorders[1].replayed > 10


def test_padding_writes_to_its_own_page_and_to_no_other(path: Path) -> None:
    """Pages of a request that decodes beside seven padding rows are those it has when it decodes alone."""
    pools = []
    for sizes in ((), (8,)):
        recorder = RerunRecorder() if sizes else None
        with gathered_runner(path, None, recorder=recorder, capture_sizes=sizes, **TIGHT) as built:
            pool = [tensor for pair in built.runner._batches._kv for tensor in pair]
            with torch.inference_mode():
                for tensor in pool:
                    tensor.zero_()  # recording has written to it
            serve(built, PROMPTS[:1], SamplingParams(max_tokens=20, temperature=0.0))
            pools.append([tensor.clone() for tensor in pool])
    for alone, padded in zip(*pools, strict=True):
        torch.testing.assert_close(padded[:-1], alone[:-1], atol=1e-5, rtol=0)
        assert not alone[-1].any()
        assert padded[-1].any(), "padding rows have a page of their own"


def test_where_nothing_can_be_recorded_steps_are_not_padded(path: Path) -> None:
    with gathered_runner(path, None, **TIGHT) as plain:
        expected = serve(plain, PROMPTS, HOW).outputs
    with gathered_runner(path, None, recorder=Refuses(), capture_sizes=SIZES, **TIGHT) as eager:
        assert eager.runner._graphs.padding.of(2) == 2
        assert serve(eager, PROMPTS, HOW).outputs == expected


# -------------------------------------------------------------------------------------------- with the CPU's recorder


@pytest.fixture(scope="module")
def cpu_config(path: Path) -> EngineConfig:
    return EngineConfig(
        model_dir=str(path), device="cpu", num_threads=1, max_model_len=96, page_size=4, **TIGHT
    )


@pytest.fixture(scope="module")
def expected(cpu_config: EngineConfig) -> list[list[int]]:
    built = create_runner(cpu_config)
    outputs = serve(built, PROMPTS, HOW).outputs
    built.runner.close()
    return outputs


def test_sizes_recorded_at_start_serve_the_same_tokens(
    cpu_config: EngineConfig, expected: list[list[int]]
) -> None:
    said: list[tuple[str, float]] = []
    config = replace(cpu_config, cudagraph_capture_sizes=[1, 4, 2])
    built = create_runner(config, lambda phase, share: said.append((phase, share)))
    try:
        graphs = built.runner._graphs
        assert isinstance(graphs, CapturedForward)
        assert sorted(graphs._graphs) == [1, 2, 4]
        assert serve(built, PROMPTS, HOW).outputs == expected
        shares = [share for phase, share in said if phase == "capturing graphs"]
        assert (shares[0], shares[-1], shares) == (0.0, 1.0, sorted(shares))
        assert "graphs" in built.info.startup_seconds
    finally:
        built.runner.close()


# ------------------------------------------------------------------------------------------------------------- sizes


def test_a_batch_goes_to_the_smallest_size_that_holds_it() -> None:
    sizes = PaddedSizes((8, 1, 4))
    assert [sizes.of(rows) for rows in (1, 2, 4, 5, 8, 9)] == [1, 4, 4, 8, 8, 9]
    assert PaddedSizes(()).of(3) == 3


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8, 20, 256, 300, 512, 4096])
def test_default_sizes_hold_every_batch_and_waste_little(most: int) -> None:
    sizes = default_sizes(most)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == min(most, 512)
    padded = PaddedSizes(sizes)
    for rows in range(1, sizes[-1] + 1):
        assert rows <= padded.of(rows) <= max(rows + 7, rows * 17 / 16 + 1, 8 if rows > 4 else 4)
