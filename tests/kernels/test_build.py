"""The kernels are built once, found again, done without when they cannot be built, and bring no second OpenMP."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from penstock.kernels import select
from penstock.kernels.attention.interface import AttentionSpec
from penstock.kernels.cpu import build, library

CPU = torch.device("cpu")
SPEC = AttentionSpec(4, 2, 64, 16, 0.125)
# Runs in a process of its own: multiply through torch and through the kernels, then look at what is mapped.
ONE_RUNTIME = """
import json
import torch
from penstock.kernels.select import select_ops
linear = select_ops("cpu", torch.device("cpu")).linear(torch.randn(2048, 2048))
linear(torch.randn(64, 2048)), torch.randn(2048, 2048) @ torch.randn(2048, 2048)
lines = open("/proc/self/maps").read().splitlines()
found = {line.split()[-1] for line in lines if "omp" in line.rsplit("/", 1)[-1]}
print(json.dumps(sorted(found)))
"""


@pytest.fixture
def forget_library() -> None:
    library.load.cache_clear()


@pytest.mark.usefixtures("forget_library")
def test_without_a_compiler_one_line_of_log_and_plain_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with caplog.at_level(logging.INFO):
        ops = select.select_ops("auto", CPU)
        attention = select.select_attention("cpu", CPU, SPEC)
    library.load.cache_clear()
    assert (ops.name, attention.name) == ("torch", "torch")
    (record,) = caplog.records
    for word in ("g++", "clang++", "install", "torch"):
        assert word in record.getMessage()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            'echo "#define X 1"; case "$*" in *-dM*) ;; *) echo "k.cpp:1: error: no such flag" >&2; exit 1;; esac',
            "no such flag",
        ),
        ("exit 3", "does not work"),
    ],
)
def test_a_compiler_that_fails_is_named_in_the_one_line(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    script: str,
    expected: str,
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.load.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert library.load() is None
    library.load.cache_clear()
    (record,) = caplog.records
    assert str(compiler) in record.getMessage()
    assert expected in record.getMessage()
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_the_second_process_finds_the_built_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Path] = []

    def compile_library(compiler: str, flags: tuple[str, ...], sources: list[Path], target: Path) -> None:
        assert sources
        calls.append(target)
        target.write_bytes(b"")

    monkeypatch.setattr(build, "compile_library", compile_library)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.library() == build.library()
    assert len(calls) == 1
    assert calls[0].is_relative_to(tmp_path)


def test_the_cache_key_follows_sources_and_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = build.find_compiler()
    before = build.cache_key(compiler, build.FLAGS)
    assert build.cache_key(compiler, build.FLAGS) == before
    assert build.cache_key(compiler, (*build.FLAGS, "-O1")) != before
    for path in build.SOURCE_DIR.glob("*.[ch]*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "SOURCE_DIR", tmp_path)
    assert build.cache_key(compiler, build.FLAGS) == before
    (tmp_path / "pool.h").write_text("// changed")
    assert build.cache_key(compiler, build.FLAGS) != before


def test_an_unwritable_cache_is_a_build_error_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "penstock").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match="set XDG_CACHE_HOME"):
        build.library()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_process_holds_one_openmp_runtime(library: library.Library) -> None:
    out = subprocess.run([sys.executable, "-c", ONE_RUNTIME], capture_output=True, text=True, check=True)
    runtimes = json.loads(out.stdout.splitlines()[-1])
    assert len(runtimes) == 1, runtimes
    assert "penstock" not in runtimes[0]


def test_unknown_names_and_wrong_devices_say_what_to_use() -> None:
    with pytest.raises(ValueError, match="auto, torch, cpu"):
        select.select_ops("fast", CPU)
    with pytest.raises(ValueError, match="use auto or torch"):
        select.select_attention("cpu", torch.device("cuda"), SPEC)
    assert select.select_ops("torch", CPU).name == "torch"


# The same kernels for lesser machines: compiled with fewer instructions, compared with torch in their own process.
PORTABLE = """
import sys, torch
sys.path.insert(0, {tests!r})
from penstock.kernels.cpu import library
from penstock.kernels.cpu.ops import CpuOps
from penstock.kernels.attention.cpu_backend import CpuAttention
from penstock.kernels.attention.torch_backend import TorchAttention
from penstock.kernels.attention.interface import AttentionSpec
from attention_batches import make_batch, make_tensors
built = library.Library({path!r})
torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
    x, weight = torch.randn(13, 65).to(dtype), torch.randn(70, 65).to(dtype)
    torch.testing.assert_close(CpuOps(built).linear(weight)(x), x @ weight.T, atol=tolerance * 8, rtol=tolerance)
    gate = torch.randn(5, 80).to(dtype)
    a, b = gate.float().chunk(2, dim=1)
    expected = (torch.nn.functional.silu(a) * b).to(dtype)
    torch.testing.assert_close(CpuOps(built).silu_mul(gate), expected, atol=tolerance, rtol=tolerance)
    spec = AttentionSpec(6, 2, 40, 16, 0.2, 50, 4.0)
    batch, num_pages = make_batch([(600, 1), (3, 1), (0, 90)], 16)
    tensors = make_tensors(spec, batch, num_pages, dtype)
    outs = []
    for backend in (CpuAttention(spec, built), TorchAttention(spec)):
        backend.plan(batch)
        outs.append(backend.run(**tensors))
    torch.testing.assert_close(*outs, atol=tolerance, rtol=tolerance)
"""


@pytest.mark.parametrize("flags", [(), ("-mavx2", "-mfma"), ("-march=native", "-mno-avx512bf16")])
def test_kernels_for_lesser_machines_match_torch(tmp_path: Path, flags: tuple[str, ...]) -> None:
    if build.platform.machine() != "x86_64":
        pytest.skip("flags of x86-64")
    target = tmp_path / "kernels.so"
    sources = sorted(build.SOURCE_DIR.glob("*.cpp"))
    quick = tuple("-O1" if flag == "-O3" else flag for flag in build.FLAGS)
    build.compile_library(build.find_compiler(), (*quick, *flags), sources, target)
    script = PORTABLE.format(path=str(target), tests=str(Path(__file__).parents[1]))
    subprocess.run([sys.executable, "-c", script], check=True)
