"""`penstock bench gpu`: floors are right, gaps are the host's, what came is kept, and all of it runs on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from penstock.engine.bench.profile import idle
from penstock.server.bench.gpu.results import Results, judge, table
from penstock.server.bench.gpu.shapes import SHAPES
from penstock.server.bench.gpu.workload import FULL, QUICK
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA = SHAPES["llama-3.1-8b"]
CEILINGS = [{"measure": "copy", "bytes_per_s": 4.3e12}, {"measure": "matmul", "flop_per_s": 790e12}]


def with_ceilings(path: Path | None = None) -> Results:
    results = Results(path)
    for record in CEILINGS:
        results.add(record)
    return results


# ---------------------------------------------------------------------------------------------------------- floors


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_parameters_that_transformers_gives_its_config(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    shape.write(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    products = [count for key, count in sizes.items() if key.endswith("proj.weight")]
    assert shape.layer_parameters == sum(products)
    assert shape.head_parameters == model.lm_head.weight.numel()
    assert ("lm_head.weight" not in sizes) == shape.tied


@pytest.mark.parametrize(
    ("batch", "context", "milliseconds"),
    [(1, 1024, 3.5), (1, 8192, 3.7), (32, 1024, 4.5), (32, 8192, 11.5), (256, 1024, 11.5), (256, 8192, 67.4)],
)
def test_decode_floors_of_llama_8b_are_those_worked_out_by_hand(
    batch: int, context: int, milliseconds: float
) -> None:
    """15.0 GB of weights and 128 KiB a token at 4.3 TB/s."""
    record = {"measure": "decode", "batch": batch, "tokens": context, "mean_context": context, "ms": 100.0}
    judged = judge(record, LLAMA, with_ceilings(), 2)
    assert judged["floor_ms"] == pytest.approx(milliseconds, abs=0.06)
    assert judged["ratio"] == pytest.approx(100 / judged["floor_ms"])


def test_an_fp8_cache_halves_what_keys_cost() -> None:
    plain, fp8 = (LLAMA.decode_bytes(256, 1024, size) for size in (2, 1))
    assert plain - fp8 == 256 * 1024 * 64 * 1024


def test_the_prefill_floor_counts_products_and_causal_attention() -> None:
    """145 ms of products and 22 ms of attention at 790 TFLOP/s."""
    judged = judge({"measure": "prefill", "tokens": 8192, "ms": 334.0}, LLAMA, with_ceilings(), 2)
    assert judged["floor_ms"] == pytest.approx(167, abs=0.6)
    assert judged["matmul_share"] == pytest.approx(0.5, abs=0.002)
    assert judged["met"] is False


# --------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(("batch", "ratio", "met"), [(1, 1.1, True), (1, 1.2, False), (256, 1.3, True)])
def test_decode_targets_are_times_the_floor(batch: int, ratio: float, met: bool) -> None:
    record = {"measure": "decode", "batch": batch, "tokens": 1024, "mean_context": 1024.0, "ms": 1.0}
    floor = judge(record, LLAMA, with_ceilings(), 2)["floor_ms"]
    assert judge({**record, "ms": ratio * floor}, LLAMA, with_ceilings(), 2)["met"] is met


def test_serving_is_judged_against_the_same_load_without_http() -> None:
    results = with_ceilings()
    load = {"model": LLAMA.name, "batch": 256, "tokens": 1024, "output": 256, "requests": 512}
    serving = {**load, "measure": "serving", "tokens_per_s": 850.0}
    assert "met" not in judge(serving, LLAMA, results, 2)
    results.add({**load, "measure": "loop", "tokens_per_s": 1000.0})
    judged = judge(serving, LLAMA, results, 2)
    assert (judged["loop_share"], judged["met"]) == (0.85, False)


def test_nothing_is_demanded_of_another_device_than_a_gpu() -> None:
    results = with_ceilings()
    results.with_targets = False
    record = {"measure": "decode", "batch": 1, "tokens": 1024, "mean_context": 1024.0, "ms": 1.0}
    judged = judge(record, LLAMA, results, 2)
    assert "ratio" in judged
    assert "met" not in judged


def test_failures_are_kept_and_shown_and_measured_again_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    results = with_ceilings(path)
    results.add({"measure": "decode", "model": "m", "batch": 1, "tokens": 8, "failed": "RuntimeError: no"})
    assert "FAILED RuntimeError: no" in table(results)
    with path.open("a") as out:
        out.write('{"measure": "decode", "mod')  # the run was ended here
    resumed = Results(path)
    resumed.read()
    assert list(resumed.records.values()) == CEILINGS


# ------------------------------------------------------------------------------------------------------- host's gap


def kernel(start: float, duration: float, correlation: int) -> dict[str, Any]:
    return {"cat": "kernel", "ts": start, "dur": duration, "args": {"correlation": correlation}}


def launch(start: float, correlation: int) -> dict[str, Any]:
    return {"cat": "cuda_runtime", "ts": start, "dur": 1, "args": {"correlation": correlation}}


def test_only_time_in_which_nothing_was_queued_is_the_host_s_gap() -> None:
    found = idle(
        [
            {"ph": "M", "name": "process_name"},
            *(launch(0, 1), launch(5, 2), launch(60, 3)),
            kernel(10, 20, 1),
            kernel(12, 5, 1),  # beside the first
            kernel(33, 7, 1),  # of the same graph: 3 µs from one kernel to the next
            kernel(44, 6, 2),  # had been queued: 4 µs
            kernel(65, 5, 3),  # launched 10 µs after the device was free: 15 µs
        ]
    )
    assert found is not None
    assert (found.total_us, found.idle_us, found.host_us, found.longest_us) == (60, 22, 15, 15)
    assert found.num_kernels == 5


def test_a_profile_without_kernels_is_no_profile() -> None:
    assert idle([launch(0, 1)]) is None


# ------------------------------------------------------------------------------------------------------- everything


def test_every_batch_context_and_concurrency_is_measured() -> None:
    decodes = {(w["batch"], w["tokens"]) for w in FULL.steps if w["measure"] == "decode"}
    assert decodes == {(batch, tokens) for batch in (1, 8, 32, 128, 256) for tokens in (1024, 8192)}
    assert {load.concurrency for load in FULL.serving} == {1, 32, 256}


def test_a_quick_run_on_a_cpu_measures_everything_and_says_what_it_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = [
        sys.executable,
        "-m",
        "penstock",
        "bench",
        "gpu",
        "--device",
        "cpu",
        "--quick",
        "--out",
        str(out),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert not [record for record in records if "failed" in record]
    names = [record["measure"] for record in records]
    assert names[:3] == ["machine", "copy", "matmul"]
    assert {"decode", "prefill", "host_gap", "loop", "start", "serving"} <= set(names)
    left_out = {record["measure"]: record["skipped"] for record in records if "skipped" in record}
    assert set(left_out) == {"host_gap", "decode"}
    assert "max_model_len is 256" in left_out["decode"]
    for record in records:
        if record["measure"] in ("decode", "prefill") and "skipped" not in record:
            assert min(record["ms"], record["floor_ms"]) > 0
    assert len(ended.stdout.splitlines()) >= len(QUICK.steps)


def test_a_device_that_is_not_there_is_one_line_and_a_record(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        return
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "penstock", "bench", "gpu", "--quick", "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: --device cuda cannot be measured")
    assert all("failed" in json.loads(line) for line in out.read_text().splitlines())
