"""`python -m tests.gpu`: its checks pass on a CPU, fail for what is wrong, and every end is a record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from engine_runs import serve
from penstock.tests.gpu import checks
from penstock.tests.gpu.__main__ import LIMITS_S, ROOT, run_apart
from penstock.tests.gpu.reference import judge


def test_every_check_has_a_place_in_the_order_a_limit_and_a_line_in_the_docs() -> None:
    assert set(LIMITS_S) == set(checks.CHECKS)
    page = (ROOT / "docs" / "gpu-runs.md").read_text()
    assert [name for name in LIMITS_S if f"\n| `{name}` | " not in page] == []
    assert sum(LIMITS_S.values()) < 1800


def test_a_run_from_the_checkout_writes_a_record_for_each_check(tmp_path: Path) -> None:
    """Without the package on the path: the folder of a checkout may be called anything."""
    out = tmp_path / "checks.jsonl"
    command = [
        sys.executable,
        "-m",
        "tests.gpu",
        "--device",
        "cpu",
        "--only",
        "sliding",
        "--out",
        str(out),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(record["check"], record["status"]) for record in records] == [("sliding", "passed")], (
        ended.stderr
    )
    assert ended.returncode == 0
    assert ended.stdout.splitlines() == out.read_text().splitlines()


@pytest.fixture(scope="module")
def run():
    with (
        checks.checkpoint("llama", "cpu", **checks.HEADS_128) as (path, reference),
        checks.engine(path, "cpu") as built,
    ):
        yield path, reference, serve(built, checks.prompts(4, 40), checks.greedy(8, prompt_logprobs=0))


def test_one_wrong_token_is_seen(run) -> None:
    path, reference, served = run
    judge(reference, path, served, "cpu").accept()
    tokens = served.requests[2].tokens
    right = int(tokens[-3])
    tokens[-3] = right % 300 + 3
    with pytest.raises(AssertionError, match="nats below the likeliest"):
        judge(reference, path, served, "cpu").accept()
    tokens[-3] = right


def test_wrong_probabilities_of_a_prompt_are_seen(run) -> None:
    path, reference, served = run
    rows = served.logprobs[1]
    right = [row.logprobs.copy() for row in rows]
    for row in rows:
        row.logprobs[:] = np.roll(row.logprobs, 1)
    with pytest.raises(AssertionError, match="prompt probabilities off"):
        judge(reference, path, served, "cpu").accept()
    for row, values in zip(rows, right, strict=True):
        row.logprobs[:] = values


def test_a_check_that_dies_hangs_or_has_no_time_left_is_a_record(tmp_path: Path) -> None:
    nothing = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    (tmp_path / "torch.py").write_text("import os; os._exit(11)")
    assert run_apart("machine", "cpu", 60, nothing) | {"seconds": 0} == {
        "check": "machine",
        "seconds": 0,
        "status": "failed",
        "error": "the process ended with exit status 11",
    }
    (tmp_path / "torch.py").write_text("import threading; threading.Event().wait()")
    assert run_apart("machine", "cpu", 1, nothing)["error"] == "not done in 1 s"
    assert run_apart("machine", "cpu", -1, nothing)["status"] == "skipped"
