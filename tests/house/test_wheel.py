"""The wheel holds every module and data file, and the kernels if there is a compiler; without one nothing fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import penstock
import pytest

ROOT = Path(penstock.__file__).resolve().parent
ROOMS = ("server", "engine", "scheduler", "spec", "kernels")
DATA = {".cpp", ".h", ".json", ".safetensors", ".md", ".jinja"}
PREBUILT = "penstock/kernels/cpu/prebuilt/"
# A compiler that writes an empty file where its output belongs: the real one takes as long as all other tests here.
COMPILER = '#!/bin/sh\nfor word; do [ "$last" = -o ] && : > "$word"; last=$word; done\n'
BROKEN_COMPILER = "#!/bin/sh\nexit 1\n"
CALL_BACK_END = (
    "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree as somebody else has it."""
    folder = tmp_path_factory.mktemp("tree") / "source"
    ignored = shutil.ignore_patterns(".git", "build", "*.egg-info", "__pycache__", ".*cache", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def setuptools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a build back end as pyproject.toml demands it."""
    folder = tmp_path_factory.mktemp("setuptools")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, "setuptools>=77"], check=True)
    return folder


def environment(folder: Path, compiler: str | None, **more: str) -> dict[str, str]:
    """With this compiler on PATH and nothing else."""
    (folder / "bin").mkdir()
    if compiler is not None:
        (folder / "bin" / "g++").write_text(compiler)
        (folder / "bin" / "g++").chmod(0o755)
    return {**os.environ, "PATH": str(folder / "bin"), "XDG_CACHE_HOME": str(folder / "cache"), **more}


def call_back_end(hook: str, source: Path, setuptools: Path, folder: Path, compiler: str | None) -> Path:
    """What a PEP 517 hook made; its file is in `folder`."""
    found = subprocess.run(
        [sys.executable, "-c", CALL_BACK_END, hook, str(folder)],
        cwd=source,
        env=environment(folder, compiler, PYTHONPATH=str(setuptools)),
        check=True,
        capture_output=True,
        text=True,
    )
    return folder / found.stdout.splitlines()[-1]


@pytest.mark.slow
def test_wheel_holds_every_module_and_data_file(tmp_path: Path, source: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(source)],
        env=environment(tmp_path, COMPILER),
        check=True,
    )
    (wheel,) = tmp_path.glob("penstock-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"penstock/__init__.py", "penstock/__main__.py", "penstock/py.typed"}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if "__pycache__" not in path.parts and (path.suffix == ".py" or path.suffix in DATA):
                wanted.add(f"penstock/{path.relative_to(ROOT).as_posix()}")
    assert wanted <= held, sorted(wanted - held)
    strangers = {
        name for name in held if name.split("/")[1] in {"tests", "tools", "docs"} and "dist-info" not in name
    }
    assert not strangers
    assert len([name for name in held if name.startswith(PREBUILT)]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [COMPILER, BROKEN_COMPILER, None])
def test_wheel_belongs_to_its_platform_if_it_has_kernels_and_else_to_all(
    tmp_path: Path, source: Path, setuptools: Path, compiler: str | None
) -> None:
    stale = source / "build" / "lib" / PREBUILT / "stale" / "libpenstock_kernels.so"
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.write_bytes(b"left from an earlier build in the same tree")
    wheel = call_back_end("build_wheel", source, setuptools, tmp_path, compiler)
    kernels = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    if compiler == COMPILER:
        assert "-py3-none-linux_" in wheel.name
        (kernel,) = kernels
        key, name = kernel.removeprefix(PREBUILT).split("/")
        assert len(key) == 24
        assert name == "libpenstock_kernels.so"
    else:
        assert wheel.name.endswith("-py3-none-any.whl")
        assert not kernels
    assert not (tmp_path / "cache").exists(), "an installation leaves the user's cache alone"


@pytest.mark.slow
def test_editable_wheel_and_sdist_bring_no_kernels(tmp_path: Path, source: Path, setuptools: Path) -> None:
    for hook in ("build_editable", "build_sdist"):
        (tmp_path / hook).mkdir()
    editable = call_back_end("build_editable", source, setuptools, tmp_path / "build_editable", COMPILER)
    assert not [name for name in zipfile.ZipFile(editable).namelist() if name.endswith(".so")]
    assert not list((source / "kernels").rglob("*.so"))
    sdist = call_back_end("build_sdist", source, setuptools, tmp_path / "build_sdist", COMPILER)
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels").rglob("*.[cph]*")}
    assert {name for name in wanted if "__pycache__" not in name} | {"setup.py"} <= held
    assert not [name for name in held if name.endswith(".so")]
