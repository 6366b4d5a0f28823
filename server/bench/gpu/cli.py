"""`penstock bench gpu`: from options to a table of figures beside their floors, in the order things happen.

The engine is measured in processes of its own (`python -m penstock.engine.bench`, and `penstock serve` under `penstock
bench serve`), because nothing here may load torch, and because what breaks there must not take the figures along.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from .... import __version__
from ....scheduler.messages import EngineConfig
from ...chat.own_server import ServerFailed, own_server
from ...family.lifeline import die_with_parent
from ...model_files import DEMO_DIR
from ..options import DefaultsFormatter, OneLineParser, finite
from .results import Record, Results, judge, table
from .shapes import SHAPES, WEIGHT_BYTES, Shape
from .workload import FULL, QUICK, Serving, Wanted, Workload

PACKAGE = __package__.split(".")[0]
ROOT = Path(__file__).resolve().parents[3]
GRACE_S = 60.0  # after the limit, for what has been begun
FP8 = ("fp8", "fp8_e4m3", "fp8_e5m2")


class Clock:
    """How much of the limit is left."""

    def __init__(self, limit_s: float) -> None:
        self._end = time.monotonic() + limit_s

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


def main(argv: list[str]) -> int:
    """`argv`: the options after `bench gpu`. Exit code 0, or 1 if something failed; a missed target is no failure."""
    options = make_parser().parse_args(argv)
    clock = Clock(options.limit)
    results = Results(Path(options.out), with_targets=options.device == "cuda")
    try:
        if options.resume:
            results.read()
        else:
            Path(options.out).write_text("")
    except OSError as error:
        print(
            f"error: --out {options.out}: {error.strerror}: give a file that can be written", file=sys.stderr
        )
        return 2
    workload = QUICK if options.quick else FULL
    bench = Bench(options, workload, results, clock, sys.stderr)
    bench.machine()
    if results.get(measure="copy") is None:
        print(f"error: --device {options.device} cannot be measured: see {options.out}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="penstock-bench") as folder:
        for name in options.models or workload.models:
            shape, model_dir = SHAPES[name], Path(folder) / name
            shape.write(model_dir)
            bench.engine(shape, model_dir)
            bench.serve(shape, model_dir)
    print(table(results))
    return 1 if any("failed" in record for record in results.records.values()) else 0


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="penstock bench gpu",
        description="Measure decode steps, prefill, serving and start-up of dummy models on this machine, each beside "
        "the floor that follows from its shape and from the bandwidth and matrix rate measured in the same run.",
        formatter_class=DefaultsFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu is for trying this out"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and a few steps: does everything run?"
    )
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), help="shapes [default: all real ones]")
    parser.add_argument(
        "--out", default="bench-gpu.jsonl", metavar="FILE", help="JSON lines, one a measurement"
    )
    parser.add_argument("--resume", action="store_true", help="keep what --out holds, measure only the rest")
    parser.add_argument(
        "--limit", type=finite, default=480.0, metavar="SECONDS", help="begin nothing after that"
    )
    parser.add_argument("--kv-cache-dtype", metavar="NAME", help="as for penstock serve")
    parser.add_argument("--attention-backend", metavar="NAME", help="as for penstock serve")
    parser.add_argument("--enforce-eager", action="store_true", help="no CUDA graphs, for comparison")
    return parser


class Bench:
    def __init__(
        self,
        options: argparse.Namespace,
        workload: Workload,
        results: Results,
        clock: Clock,
        say: TextIO,
    ) -> None:
        self._options = options
        self._workload = workload
        self._results = results
        self._clock = clock
        self._say = say
        fp8 = options.kv_cache_dtype in FP8
        self._kv_element_bytes = 1 if fp8 else WEIGHT_BYTES

    def add(self, record: Record, shape: Shape | None = None) -> None:
        if shape is not None:
            record = judge({"model": shape.name, **record}, shape, self._results, self._kv_element_bytes)
        self._results.add(record)
        print(json.dumps(record), file=self._say, flush=True)

    def machine(self) -> None:
        """What it is, and the two rates that floors are made of."""
        if self._results.get(measure="copy") and self._results.get(measure="matmul"):
            return
        told = {
            "device": self._options.device,
            "deadline_s": self._clock.left(),
            "copy_bytes": self._workload.copy_bytes,
            "matmul_size": self._workload.matmul_size,
        }
        for record in self.measured(told):
            if record["measure"] == "machine":
                record |= {"date": today(), "penstock": __version__, "commit": commit(), **self.settings()}
            self.add(record)

    def engine(self, shape: Shape, model_dir: Path) -> None:
        """The steps, and the loads without HTTP."""
        loads = [each.loop for each in self._workload.serving]
        first, *rest = self._workload.steps
        wanted = [w for w in (first, *rest[:4], *loads, *rest[4:]) if not self.done(shape, w)]
        if not wanted:
            return
        told = {
            "device": self._options.device,
            "deadline_s": self._clock.left(),
            "engine": self.engine_config(model_dir),
            "wanted": wanted,
        }
        for record in self.measured(told):
            self.add(record, shape)

    def done(self, shape: Shape, wanted: Wanted) -> bool:
        return self._results.has({"model": shape.name, **wanted})

    def settings(self) -> Record:
        options = self._options
        return {
            "kv_cache_dtype": options.kv_cache_dtype or "auto",
            "attention_backend": options.attention_backend or "auto",
            "enforce_eager": options.enforce_eager,
        }

    def engine_config(self, model_dir: Path) -> dict[str, Any]:
        """An `EngineConfig` as JSON; decoding it there checks it."""
        workload = self._workload
        config = EngineConfig(
            model_dir=str(model_dir),
            load_format="dummy",
            device=self._options.device,
            max_model_len=workload.max_model_len,
            max_num_seqs=workload.max_num_seqs,
            max_num_batched_tokens=workload.max_num_batched_tokens,
            max_num_queued_reqs=1 << 16,
            target_itl_ms=0.0,
        )
        told = {name: getattr(config, name) for name in config.__struct_fields__}
        return {**told, **{name: value for name, value in self.settings().items() if value != "auto"}}

    def measured(self, told: dict[str, Any]) -> Iterator[Record]:
        """What `python -m penstock.engine.bench` says, line by line; its failure is a record too."""
        with tempfile.TemporaryDirectory(prefix="penstock-bench") as folder:
            path, errors = Path(folder) / "bench.json", Path(folder) / "stderr"
            path.write_text(json.dumps(told))
            with errors.open("wb") as stderr:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", f"{PACKAGE}.engine.bench", str(path)],
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    preexec_fn=functools.partial(die_with_parent, os.getpid()),
                )
            # A step that hangs is ended here, some time after nothing new is begun there.
            guard = threading.Timer(self._clock.left() + GRACE_S, process.kill)
            guard.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    yield json.loads(line)
                status = process.wait()
            finally:
                guard.cancel()
                process.kill()
                process.wait()
            if status:
                words = last_line(errors.read_text(errors="replace"))
                yield {"measure": "engine", "failed": f"exit status {status}: {words}"}

    # ------------------------------------------------------------------------------------------------------ serving

    def serve(self, shape: Shape, model_dir: Path) -> None:
        """The loads through HTTP, and what a start takes."""
        wanted = [load for load in self._workload.serving if not self.done(shape, serving(load))]
        if not wanted:
            return
        if not self._clock.left():
            for load in wanted:
                self.add({**serving(load), "skipped": "out of time"}, shape)
            return
        began = time.perf_counter()
        try:
            with own_server(self.serve_command(model_dir), self._say, self._clock.left() + GRACE_S) as url:
                self.add({"measure": "start", "seconds": time.perf_counter() - began}, shape)
                for load in wanted:
                    self.add({**serving(load), **self.load(url, load)}, shape)
        except ServerFailed as error:
            self.add({"measure": "start", "failed": str(error)}, shape)

    def serve_command(self, model_dir: Path) -> list[str]:
        workload, options = self._workload, self._options
        sizes = {
            "--max-model-len": workload.max_model_len,
            "--max-num-seqs": workload.max_num_seqs,
            "--max-num-batched-tokens": workload.max_num_batched_tokens,
            "--target-itl-ms": 0,
            "--device": options.device,
            "--kv-cache-dtype": options.kv_cache_dtype,
            "--attention-backend": options.attention_backend,
        }
        return [
            *(sys.executable, "-P", "-m", PACKAGE, "serve", str(model_dir)),
            *("--load-format", "dummy", "--tokenizer", str(DEMO_DIR), "--host", "127.0.0.1", "--port", "0"),
            *(word for flag, value in sizes.items() if value is not None for word in (flag, str(value))),
            *(["--enforce-eager"] if options.enforce_eager else []),
        ]

    def load(self, url: str, load: Serving) -> Record:
        if not self._clock.left():
            return {"skipped": "out of time"}
        with tempfile.TemporaryDirectory(prefix="penstock-bench") as folder:
            path = Path(folder) / "figures.json"
            command = [
                *(sys.executable, "-P", "-m", PACKAGE, "bench", "serve", "--base-url", url),
                *("--num-prompts", str(load.requests), "--max-concurrency", str(load.concurrency)),
                *("--random-input-len", str(load.input_len), "--random-output-len", str(load.output_len)),
                # Prompts of another load would be found in the prefix cache.
                *("--seed", str(load.concurrency), "--ignore-eos", "--no-calibrate", "--no-progress"),
                *("--json", str(path)),
            ]
            try:
                ended = subprocess.run(
                    command, capture_output=True, text=True, timeout=self._clock.left() + GRACE_S
                )
            except subprocess.TimeoutExpired:
                return {"failed": "it ran past the limit"}
            if ended.returncode:
                return {"failed": last_line(ended.stderr or ended.stdout)}
            found = json.loads(path.read_text())
        return {
            "tokens_per_s": found["output_throughput"],
            "ttft_p50_ms": found.get("median_ttft_ms"),
            "itl_p50_ms": found.get("median_itl_ms"),
            "itl_p99_ms": found.get("p99_itl_ms"),
        }


def serving(load: Serving) -> Wanted:
    return {**load.loop, "measure": "serving"}


def last_line(text: str) -> str:
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no word"


def today() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def commit() -> str | None:
    """Of the checkout that is run, if it is one."""
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
