"""The checks of `python -m tests.gpu`, each a function of the device that returns what it found or raises."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from engine_runs import Served, serve
from penstock.engine.bench.machine import machine
from penstock.engine.build import Built, ConfigurationError, create_runner
from penstock.scheduler.messages import EngineConfig, SamplingParams
from tiny_models import VOCAB_SIZE, make_checkpoint
from transformers import PreTrainedModel

from .reference import judge

ROOT = Path(__file__).resolve().parents[2]
# Shapes that every attention kernel takes: heads of 128, groups of 4 and of 8.
HEADS_128 = {"hidden_size": 256, "head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": HEADS_128,
    "qwen3": {**HEADS_128, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen2": {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 1},
    "mistral": {**HEADS_128, "sliding_window": None},
}
# e4m3 has 3 bits of mantissa where bfloat16 has 7, in keys and values alone.
FP8_TIMES, FP8_AGREEMENT = 8.0, 0.8
MARK = "pytest.mark." + "gpu"


class Skipped(Exception):
    """The check does not apply here; the message says why."""


def prompts(count: int, longest: int, seed: int = 3) -> list[list[int]]:
    """Lengths from 1 to `longest`, evenly mixed; some begin alike."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randint(3, VOCAB_SIZE, (longest,), generator=generator).tolist()
    lengths = [1 + int(number) for number in torch.randint(0, longest, (count,), generator=generator)]
    found = []
    for number, length in enumerate(lengths):
        own = torch.randint(3, VOCAB_SIZE, (longest,), generator=generator).tolist()
        shared = longest // 3 if number % 3 == 0 else 0
        found.append((common[:shared] + own)[:length])
    return found


@contextmanager
def engine(path: Path, device: str, **options: Any) -> Iterator[Built]:
    settings: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": 8, "kv_cache_memory_bytes": 1 << 28}
    built = create_runner(EngineConfig(model_dir=str(path), device=device, **{**settings, **options}))  # type: ignore[arg-type]
    try:
        yield built
    finally:
        built.runner.close()


@contextmanager
def checkpoint(family: str, device: str, **overrides: Any) -> Iterator[tuple[Path, PreTrainedModel]]:
    """A tiny random model in bfloat16, and its float32 reference on the device."""
    with tempfile.TemporaryDirectory(prefix="penstock-gpu") as folder:
        path = Path(folder)
        model = make_checkpoint(family, path, dtype=torch.bfloat16, **overrides)
        yield path, model.to(device)


def greedy(count: int, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=count, temperature=0.0, **more)


# ---------------------------------------------------------------------------------------------------------- checks


def check_machine(device: str) -> dict[str, Any]:
    """There is a device, and it computes."""
    found = machine(torch.device(device))
    a = torch.randn(256, 256, device=device, dtype=torch.bfloat16)
    expected = a.cpu().float() @ a.cpu().float()
    error = ((a @ a).cpu().float() - expected).norm() / expected.norm()
    assert error < 0.01, f"a product is off by {float(error):.4f}"
    return found


def check_ops(device: str) -> dict[str, Any]:
    """Every operation and attention back end against its oracle: the tests that are marked `gpu`."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in path.read_text()]
    if not marked and device == "cpu":
        raise Skipped("no test is marked gpu")
    assert marked, "no test is marked gpu"
    with tempfile.TemporaryDirectory(prefix="penstock-gpu") as folder:
        report = Path(folder) / "report.xml"
        command = [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-m",
                "gpu",
                "-p",
                "no:cacheprovider",
                f"--junitxml={report}",
            ),
            *("--continue-on-collection-errors", *map(str, marked)),
        ]
        subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    outcomes: dict[str, list[str]] = {"failure": [], "error": [], "skipped": []}
    for case in cases:
        for kind, names in outcomes.items():
            if case.find(kind) is not None:
                names.append(f"{case.get('classname')}::{case.get('name')}")
    ran = len(cases) - len(outcomes["skipped"]) - len(outcomes["error"])
    found = {"tests": ran, **{f"{kind}s": names[:20] for kind, names in outcomes.items() if names}}
    assert not outcomes["failure"], f"{len(outcomes['failure'])} failed: {outcomes['failure'][:20]}"
    if device == "cpu" and ran == 0:
        raise Skipped("the tests marked gpu need one")
    assert ran > 0, f"no test marked gpu ran: {found}"
    assert not outcomes["error"], f"errors in {outcomes['error'][:20]}"
    return found


def check_families(device: str) -> dict[str, Any]:
    """Every family against transformers, with chunks, shared prefixes, mixed batches and preemption."""
    found = {}
    for family, overrides in FAMILIES.items():
        found[family] = family_figures(family, device, **overrides)
    return found


def check_sliding(device: str) -> dict[str, Any]:
    """Layers with a sliding window."""
    return family_figures("mistral", device, **{**HEADS_128, "sliding_window": 29})


def family_figures(family: str, device: str, **overrides: Any) -> dict[str, Any]:
    with checkpoint(family, device, **overrides) as (path, reference):
        # Too few pages for all, and steps too small for a prompt.
        options = {"num_pages": 24, "kv_cache_memory_bytes": None, "max_num_batched_tokens": 48}
        with engine(path, device, max_model_len=160, **options) as built:
            served = serve(built, prompts(10, 90), greedy(24, prompt_logprobs=0))
        found = judge(reference, path, served, device).accept()
    return {**found, "backend": built.info.attention_backend, "preemptions": served.load.num_preemptions}


def check_graphs(device: str) -> dict[str, Any]:
    """Greedy tokens from recordings and without: the same alone, up to ties where batches are padded."""
    outputs: dict[bool, Served] = {}
    alone: dict[bool, list[list[int]]] = {}
    with checkpoint("llama", device, **HEADS_128) as (path, reference):
        for eager in (True, False):
            with engine(path, device, enforce_eager=eager) as built:
                outputs[eager] = serve(built, prompts(12, 60), greedy(48), arrive_every=3)
                alone[eager] = serve(built, [prompts(1, 60, seed=4)[0]], greedy(100)).outputs
        figures = {
            "eager" if eager else "graphs": judge(reference, path, served, device).accept()
            for eager, served in outputs.items()
        }
    assert alone[True] == alone[False], f"alone: {alone[True]} without graphs, {alone[False]} with them"
    pairs = zip(outputs[True].outputs, outputs[False].outputs, strict=True)
    same = sum(first == second for first, second in pairs)
    return {**figures, "equal_requests": same, "requests": len(outputs[True].outputs)}


def check_batch(device: str) -> dict[str, Any]:
    """As many requests as a batch holds, of all lengths, each as if it were alone."""
    count = 256 if device == "cuda" else 12
    with checkpoint("qwen3", device, **FAMILIES["qwen3"]) as (path, reference):
        options = {"max_num_seqs": count, "max_num_batched_tokens": 2048, "kv_cache_memory_bytes": 1 << 30}
        with engine(path, device, **options) as built:
            served = serve(built, prompts(count, 300), greedy(32))
        widest = max(plan.num_decode_rows for plan in served.plans)
        found = judge(reference, path, served, device).accept()
    assert widest >= count // 2, f"only {widest} rows decoded together"
    return {**found, "widest": widest}


def check_long_context(device: str) -> dict[str, Any]:
    """A prompt of 32k tokens in chunks, with short ones decoding beside it."""
    length = 32_000 if device == "cuda" else 700
    overrides = {**FAMILIES["qwen3"], "max_position_embeddings": 32_768}
    with checkpoint("qwen3", device, **overrides) as (path, reference):
        sharpen(path, reference)
        options = {"max_model_len": 32_768, "max_num_batched_tokens": 4096, "kv_cache_memory_bytes": 1 << 30}
        with engine(path, device, **options) as built:
            sampling = [greedy(16, prompt_logprobs=0), greedy(16), greedy(16)]
            generator = torch.Generator().manual_seed(8)
            long = torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()
            served = serve(built, [long, *prompts(2, 40)], sampling)
        found = judge(reference, path, served, device).accept()
    return {**found, "tokens": length}


def sharpen(path: Path, reference: PreTrainedModel) -> None:
    """Make attention look at a few keys of thousands: over all of them any error would average out."""
    from safetensors.torch import load_file, save_file

    (file,) = path.glob("*.safetensors")
    weights = load_file(file)
    for name, weight in weights.items():
        if name.endswith("q_norm.weight"):
            weights[name] = weight * 4
    save_file(weights, file, metadata={"format": "pt"})
    for name, parameter in reference.named_parameters():
        if name.endswith("q_norm.weight"):
            parameter.data.mul_(4)


def check_fp8(device: str) -> dict[str, Any]:
    """An fp8 cache changes probabilities little."""
    with checkpoint("llama", device, **HEADS_128) as (path, reference):
        try:
            with engine(path, device, kv_cache_dtype="fp8") as built:
                served = serve(built, prompts(10, 200), greedy(24, prompt_logprobs=0))
        except (ConfigurationError, ValueError) as error:
            if device == "cpu":
                raise Skipped(f"no fp8 cache on a CPU: {error}") from None
            raise
        found = judge(reference, path, served, device)
    assert found.agreement >= FP8_AGREEMENT, f"only {found.agreement:.2f} of the tokens agree"
    return {**found.accept(FP8_TIMES), "kv_cache_dtype": built.info.kv_cache_dtype}


def check_serve(device: str) -> dict[str, Any]:
    """`penstock serve` on the device: many at once, one as alone, and an end without a fault."""
    import httpx
    from running_server import serve as start

    count = 64 if device == "cuda" else 8
    with checkpoint("llama", device, **HEADS_128) as (path, _):
        arguments = ["--device", device, "--max-model-len", "512", "--kv-cache-memory-bytes", "256MiB"]
        with start(str(path), *arguments) as running, httpx.Client(timeout=60) as client:

            def ask(tokens: list[int]) -> dict[str, Any]:
                body = {
                    "model": str(path),
                    "prompt": tokens,
                    "max_tokens": 32,
                    "temperature": 0,
                    "ignore_eos": True,
                }
                answer = client.post(f"{running.v1}/completions", json=body)
                answer.raise_for_status()
                return answer.json()  # type: ignore[no-any-return]

            asked = prompts(count, 200)
            alone = [ask(asked[0])["choices"][0]["text"] for _ in range(2)]
            assert alone[0] == alone[1], "the same prompt, alone twice, has two answers"
            with ThreadPoolExecutor(count) as pool:
                answers = list(pool.map(ask, asked))
            assert all(answer["usage"]["completion_tokens"] == 32 for answer in answers)
            status = running.stop()
    assert status == 0, f"exit status {status}"
    return {"requests": count}


CHECKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "machine": check_machine,
    "families": check_families,
    "ops": check_ops,
    "graphs": check_graphs,
    "batch": check_batch,
    "long-context": check_long_context,
    "fp8": check_fp8,
    "serve": check_serve,
    "sliding": check_sliding,
}
