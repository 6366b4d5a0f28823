"""What no file of the product may contain: ways to run what came from outside, and to load what can run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("server", "engine", "scheduler", "kernels", "spec")

# Modules that turn bytes into code or objects with behaviour.
MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"),
    *("telnetlib", "xmlrpc", "code", "codeop", "imp"),
}
NAMES = {"eval", "exec", "compile", "__import__"}
METHODS = {
    *("recv_pyobj", "send_pyobj", "unsafe_load", "full_load", "load_all", "system", "popen"),
    *("get_unsafe_globals_in_checkpoint", "add_safe_globals", "set_default_load_endianness"),
}
LOADERS = {"load": {"torch", "yaml", "np", "numpy", "joblib"}, "from_string": {"jinja2"}}
TRUE_IS_FORBIDDEN = {"shell", "allow_pickle", "trust_remote_code", "autoescape_off"}


def sources() -> list[Path]:
    found = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return [*found, *sorted(ROOT.glob("*.py"))]


def offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    if alias.name.split(".")[0] in MODULES:
                        yield f"line {node.lineno}: import {alias.name}"
            case ast.ImportFrom(module=str(module), level=0):
                if module.split(".")[0] in MODULES:
                    yield f"line {node.lineno}: from {module} import"
            case ast.Call(func=ast.Name(id=name)) if name in NAMES:
                yield f"line {node.lineno}: {name}()"
            case ast.Call(func=ast.Attribute(attr=name, value=owner)):
                owned_by = owner.id if isinstance(owner, ast.Name) else ""
                if owned_by == "yaml" and any(
                    "SafeLoader" in ast.unparse(argument) for argument in node.args
                ):
                    continue
                if name in METHODS or owned_by in LOADERS.get(name, ()):
                    yield f"line {node.lineno}: {owned_by}.{name}()"
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                value = keyword.value
                if keyword.arg in TRUE_IS_FORBIDDEN and not (
                    isinstance(value, ast.Constant) and value.value is False
                ):
                    yield f"line {node.lineno}: {keyword.arg}="


def test_there_is_something_to_look_at() -> None:
    assert len(sources()) > 100


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_from_outside_can_be_run(path: Path) -> None:
    assert list(offences(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "eval(text)",
        "torch.load(path, weights_only=True)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "socket.recv_pyobj()",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "jinja2.from_string(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_rule_sees_what_it_forbids(line: str) -> None:
    assert list(offences(ast.parse(line)))
