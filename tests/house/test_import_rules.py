"""The rooms of the house import one way, the front end never loads torch, and no imports run in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import penstock
import pytest

ROOT = Path(penstock.__file__).resolve().parent
ROOMS = ("server", "engine", "scheduler", "spec", "kernels")
# room -> what it may import of the others ("scheduler.messages" allows that module alone)
ALLOWED = {
    "server": ("scheduler.messages", "scheduler.grammar_messages"),
    "engine": ("scheduler", "spec", "kernels"),
    "spec": ("kernels",),
    "scheduler": (),
    "kernels": (),
}
FORBIDDEN_THIRD_PARTY = {
    "server": {"torch", "transformers", "flashinfer", "safetensors"},
    "scheduler": {"torch", "transformers", "flashinfer", "safetensors"},
}


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file, for every module of every room."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path
    return found


MODULES = modules()


def imports_of(name: str, path: Path) -> tuple[set[str], set[str]]:
    """(modules of this package, top-level names of other packages) that a file imports anywhere, lazily included."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    inside: set[str] = set()
    outside: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                outside.add((node.module or "").split(".")[0])
                continue
            above = package[: len(package) - (node.level - 1)]
            base = ".".join([*above, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                deeper = f"{base}.{alias.name}" if base else alias.name
                inside.add(deeper if deeper in MODULES else base)
    return inside, outside


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_imports_only_what_its_room_may(name: str) -> None:
    room = name.split(".")[0]
    inside, outside = imports_of(name, MODULES[name])
    assert "penstock" not in outside, f"{name} must import relatively inside the package"
    assert not outside & FORBIDDEN_THIRD_PARTY.get(room, set())
    for target in inside - {""}:
        other = target.split(".")[0]
        if other not in ROOMS or other == room:
            continue
        allowed = any(target == rule or target.startswith(rule + ".") for rule in ALLOWED[room])
        assert allowed, f"{name} imports {target}, against the order of the house"


def test_no_imports_run_in_a_circle() -> None:
    """Imports for types alone and imports inside functions count too."""
    graph = {name: (imports_of(name, path)[0] & MODULES.keys()) - {name} for name, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


def test_the_front_end_loads_without_torch() -> None:
    code = (
        "import sys, penstock.server.frontend, penstock.server.cli, penstock.server.launch\n"
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
