"""The wheel holds every module and every data file that the package needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import penstock
import pytest

ROOT = Path(penstock.__file__).resolve().parent
ROOMS = ("server", "engine", "scheduler", "spec", "kernels")
DATA = {".cpp", ".h", ".json", ".safetensors", ".md", ".jinja"}


@pytest.mark.slow
def test_wheel_holds_every_module_and_data_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".git", "build", "*.egg-info", "__pycache__", ".*cache")
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(source)],
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
