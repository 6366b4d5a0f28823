"""The Dockerfile goes with the rest of the repository: dependencies, files, Python, entry point."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path, PurePosixPath

import penstock
import pytest
from penstock.tools.docker.dockerfile import Instruction, Stage, context_files, parse, substitute
from penstock.tools.docker.requirements import requirements

ROOT = Path(penstock.__file__).resolve().parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = parse((ROOT / "Dockerfile").read_text())
CONTEXT = set(context_files(ROOT, (ROOT / ".dockerignore").read_text()))
# What the distributions bring that images here are based on.
PYTHON_OF = {"ubuntu24.04": (3, 12), "ubuntu:24.04": (3, 12)}
NO_PART_OF_A_WHEEL = {"tests", "tools", "docs", "build", "dist"}


def of(stage: Stage, name: str) -> list[Instruction]:
    return [each for each in stage.instructions if each.name == name]


def final() -> Stage:
    return DOCKERFILE.stages[-1]


def test_every_file_that_is_copied_is_in_the_context() -> None:
    copies = [each for stage in DOCKERFILE.stages for each in of(stage, "COPY")]
    assert len(copies) >= 3
    for copy in copies:
        for source in copy.words()[:-1]:
            wanted = PurePosixPath(source)
            assert any(wanted in (name, *name.parents) for name in CONTEXT), source


def test_stages_name_earlier_stages_or_the_pinned_base() -> None:
    names: list[str] = []
    for stage in DOCKERFILE.stages:
        base = substitute(stage.base, DOCKERFILE.arguments)
        assert base in names or re.search(r":[\w.-]*\d", base), f"{base} is not pinned"
        for each in of(stage, "RUN"):
            mounts = [value for kind, value in each.flags if kind == "mount" and "from=" in value]
            assert all(re.search(r"from=([\w-]+)", mount)[1] in names for mount in mounts)  # type: ignore[index]
        names.append(stage.name or "")


def test_the_context_holds_what_a_wheel_is_made_of_and_nothing_else() -> None:
    rooms = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name not in NO_PART_OF_A_WHEEL]
    assert len(rooms) >= 4
    wanted = {
        PurePosixPath(path.relative_to(ROOT))
        for room in rooms
        for path in room.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "prebuilt" not in path.parts
    }
    wanted |= {PurePosixPath(name) for name in ("__init__.py", "__main__.py", "py.typed", "setup.py")}
    wanted |= {
        PurePosixPath(name) for name in ("pyproject.toml", PYPROJECT["readme"], *PYPROJECT["license-files"])
    }
    used_by_steps = {name for name in CONTEXT if name.parent == PurePosixPath("tools/docker")}
    assert CONTEXT - used_by_steps == wanted


def test_secrets_history_and_caches_stay_out_of_the_context(tmp_path: Path) -> None:
    kept = {"server/cli.py", "kernels/cpu/gemm.h", "pyproject.toml"}
    left_out = {
        *(".git/config", ".env", "server/.env", "key.pem", "server/tls/key.pem", "engine/host.key"),
        *(
            "server/__pycache__/cli.pyc",
            "tests/test_a.py",
            ".gpu/site.tar.xz",
            "build/lib/a.py",
            "docs/api.md",
        ),
        *(
            "kernels/cpu/prebuilt/0123/libpenstock_kernels.so",
            "penstock.egg-info/PKG-INFO",
            ".venv/bin/python",
        ),
    }
    for name in kept | left_out:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert {str(name) for name in context_files(tmp_path, (ROOT / ".dockerignore").read_text())} == kept


def test_the_layer_of_dependencies_is_pyproject_s_and_comes_before_the_source() -> None:
    (listed,) = (stage for stage in DOCKERFILE.stages if stage.name == "requirements")
    (step,) = of(listed, "RUN")
    assert step.text.startswith("python3 /src/requirements.py /src/pyproject.toml ${EXTRAS} >")
    (extras,) = of(listed, "ARG")
    assert extras.words() == ["EXTRAS=cuda"]
    lines = requirements(ROOT / "pyproject.toml", ["cuda"])
    assert lines == PYPROJECT["dependencies"] + PYPROJECT["optional-dependencies"]["cuda"]
    (dependencies,) = (stage for stage in DOCKERFILE.stages if stage.name == "dependencies")
    copied = [source for each in of(dependencies, "COPY") for source in each.words()[:-1]]
    assert copied == ["tools/docker/cuda_home.sh"], "the source would make every change of it reinstall torch"
    assert final().base == "dependencies"
    assert not of(final(), "COPY")


def test_an_unknown_extra_is_refused() -> None:
    with pytest.raises(ValueError, match="extra gpu: unknown"):
        requirements(ROOT / "pyproject.toml", ["gpu"])


def test_the_base_s_python_is_one_that_the_package_takes() -> None:
    least = tuple(int(part) for part in re.search(r"(\d+)\.(\d+)", PYPROJECT["requires-python"]).groups())  # type: ignore[union-attr]
    (found,) = (version for name, version in PYTHON_OF.items() if name in DOCKERFILE.arguments["BASE"])
    assert found >= least


def test_the_entry_point_is_a_command_of_the_package_that_listens_where_the_port_can_be_published() -> None:
    (entry,) = of(final(), "ENTRYPOINT")
    assert entry.words() == ["penstock", "serve"]
    assert "penstock" in PYPROJECT["scripts"]
    (exposed,) = of(final(), "EXPOSE")
    (health,) = of(final(), "HEALTHCHECK")
    assert f"127.0.0.1:{exposed.text}/ready" in health.text
    (env,) = of(final(), "ENV")
    assert "PENSTOCK_HOST=0.0.0.0" in env.words()


def test_the_server_does_not_run_as_root() -> None:
    (user,) = of(final(), "USER")
    assert user.text.split(":")[0] not in ("0", "root")
