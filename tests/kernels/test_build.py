"""The kernels are built once, found again, done without when they cannot be built, and bring no second OpenMP."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from penstock.kernels import select
from penstock.kernels.attention.interface import AttentionSpec
from penstock.kernels.cpu import build, library, target

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


X86 = """processor : 0
vendor_id : GenuineAMD
flags : fpu sse2 avx2 fma avx512f

processor : 1
flags : fpu sse2
"""
ARM = """processor : 0
Features : fp asimd sve
CPU implementer : 0x41
CPU part : 0xd40
"""


def put_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    """The only compiler there is: a shell script."""
    folder.mkdir(exist_ok=True)
    compiler = folder / "g++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return compiler


# Writes an empty file where a compiler would write its output.
EMPTY_OUTPUT = 'for word; do [ "$last" = -o ] && : > "$word"; last=$word; done'


@pytest.fixture
def forget_library() -> None:
    library.load.cache_clear()


@pytest.mark.usefixtures("forget_library")
def test_without_a_compiler_one_line_of_log_and_plain_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
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
    [('echo "k.cpp:1: error: no such flag" >&2; exit 1', "no such flag"), ("exit 3", "no message")],
)
def test_a_compiler_that_fails_is_named_in_the_one_line(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    script: str,
    expected: str,
) -> None:
    compiler = put_on_path(monkeypatch, tmp_path / "bin", script)
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
    put_on_path(monkeypatch, tmp_path / "bin", EMPTY_OUTPUT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shares: list[float] = []
    built = build.library(shares.append)
    assert built.is_relative_to(tmp_path)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert shares == sorted(shares)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert build.library(shares.clear) == built  # which would fail if it were called with a share


def test_the_key_follows_sources_flags_and_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")  # no compiler is asked
    before = target.library_key(target.FLAGS)
    assert target.library_key(target.FLAGS) == before
    assert target.library_key((*target.FLAGS, "-O1")) != before
    for path in target.SOURCE_DIR.glob("*.[ch]*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(target, "SOURCE_DIR", tmp_path)
    assert target.library_key(target.FLAGS) == before
    (tmp_path / "pool.h").write_text("// changed")
    changed = target.library_key(target.FLAGS)
    assert changed != before
    monkeypatch.setattr(target, "CPUINFO", tmp_path / "cpuinfo")
    keys = set()
    for text in (X86, ARM):
        (tmp_path / "cpuinfo").write_text(text)
        keys.add(target.library_key(target.FLAGS))
    assert len(keys | {changed}) == 3


def test_a_cpu_is_what_a_compiler_may_make_use_of() -> None:
    own = target.instruction_sets(X86)
    assert own == target.instruction_sets(X86.replace("fpu sse2 avx2 fma", "fma ibrs hypervisor avx2 sse2"))
    for less in ("avx2", "fma", "avx512f"):
        assert own != target.instruction_sets(X86.replace(f" {less}", ""))
    arm = target.instruction_sets(ARM)
    assert arm == target.instruction_sets(ARM.replace("fp asimd sve", "sve fp asimd"))
    assert arm != target.instruction_sets(ARM.replace(" sve", ""))
    assert arm != target.instruction_sets(ARM.replace("0xd40", "0xd41"))


def prebuilt(monkeypatch: pytest.MonkeyPatch, folder: Path, key: str) -> Path:
    """The package has come with a library under this key; it is not one that can be loaded."""
    monkeypatch.setattr(build, "PREBUILT_DIR", folder)
    path = folder / key / build.LIBRARY_NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a library")
    return path


def test_the_library_that_came_with_the_package_needs_no_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    came = prebuilt(monkeypatch, tmp_path / "prebuilt", target.library_key(target.compiler_flags()))
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build.library() == came
    assert not (tmp_path / "cache").exists()


def test_a_library_made_for_another_machine_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prebuilt(monkeypatch, tmp_path / "prebuilt", "another")
    put_on_path(monkeypatch, tmp_path / "bin", EMPTY_OUTPUT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build.library().is_relative_to(tmp_path / "cache")


def test_one_that_does_not_load_here_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: library.Library
) -> None:
    key = target.library_key(target.compiler_flags())
    prebuilt(monkeypatch, tmp_path / "prebuilt", key)
    cached = tmp_path / "cache" / "penstock" / "kernels" / key
    cached.mkdir(parents=True)
    shutil.copy(library.path, cached / build.LIBRARY_NAME)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load = sys.modules["penstock.kernels.cpu.library"].load
    load.cache_clear()
    found = load()
    load.cache_clear()
    assert found is not None
    assert found.path == str(cached / build.LIBRARY_NAME)


def test_libraries_of_older_versions_go_when_nobody_used_them_for_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_on_path(monkeypatch, tmp_path / "bin", EMPTY_OUTPUT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = build.cache_root()
    for name, age in (("forgotten", 1.1), ("used", 0.9)):
        (root / name).mkdir(parents=True)
        (root / name / build.LIBRARY_NAME).write_bytes(b"")
        then = (tmp_path / "bin").stat().st_mtime - age * build.KEPT_UNUSED_S
        os.utime(root / name, (then, then))
    built = build.library()
    assert {path.name for path in root.iterdir()} == {"used", built.parent.name}
    os.utime(built.parent, (0, 0))
    build.library()
    assert built.parent.stat().st_mtime > 0, "asking for it is using it"


@pytest.mark.parametrize("script", [EMPTY_OUTPUT, "exit 1", None])
def test_at_installation_the_kernels_are_compiled_or_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None
) -> None:
    folder = tmp_path / "prebuilt"
    (folder / "stale").mkdir(parents=True)
    if script is None:
        monkeypatch.setenv("PATH", "/nonexistent")
    else:
        put_on_path(monkeypatch, tmp_path / "bin", script)
    if script == EMPTY_OUTPUT:
        key = target.library_key(target.compiler_flags())
        assert build.build_prebuilt(folder) == folder / key / build.LIBRARY_NAME
        assert [path.relative_to(folder).parts for path in folder.rglob("*")] == [
            (key,),
            (key, build.LIBRARY_NAME),
        ]
    else:
        with pytest.raises(build.BuildError, match="install g"):
            build.build_prebuilt(folder)
        assert not folder.exists()


def test_when_one_source_fails_the_other_compilers_are_stopped(tmp_path: Path) -> None:
    """One that would wait forever: nobody ever writes to its pipe."""
    os.mkfifo(tmp_path / "pipe")
    started = tmp_path / "started"
    waits = ["/bin/sh", "-c", f": > {started}; read line < {tmp_path / 'pipe'}"]
    fails = ["/bin/sh", "-c", f"until [ -e {started} ]; do :; done; echo error >&2; exit 1"]
    if len(os.sched_getaffinity(0)) < 2:
        waits = ["/bin/sh", "-c", f": > {started}"]
    with pytest.raises(build.BuildError, match="error"):
        list(build.run_all([waits, fails]))


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
    if target.platform.machine() != "x86_64":
        pytest.skip("flags of x86-64")
    built = tmp_path / "kernels.so"
    quick = tuple("-O1" if flag == "-O3" else flag for flag in target.FLAGS)
    build.compile_library(build.find_compiler(), (*quick, *flags), target.source_files(), built)
    script = PORTABLE.format(path=str(built), tests=str(Path(__file__).parents[1]))
    subprocess.run([sys.executable, "-c", script], check=True)
