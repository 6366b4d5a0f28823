"""The family's directory is private, goes with it, and those of killed servers are removed without harming live ones."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from penstock.server.family.runtime_dir import LOCK, runtime_dir


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of our own (short, so that sockets fit in)."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_it_is_private_and_gone_afterwards(root: Path) -> None:
    with runtime_dir() as path:
        assert path.parent == root
        assert path.name.startswith(f"penstock-{os.getpid()}-")
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "metrics").mkdir()
        (path / "metrics" / "counter.db").touch()
    assert list(root.iterdir()) == []


def test_it_is_gone_after_an_error_too(root: Path) -> None:
    with pytest.raises(RuntimeError), runtime_dir():
        raise RuntimeError
    assert list(root.iterdir()) == []


def test_the_directory_of_a_dead_server_is_removed_at_the_next_start(root: Path, dead_pid: int) -> None:
    left = root / f"penstock-{dead_pid}-abc"
    left.mkdir()
    (left / LOCK).touch()
    with runtime_dir():
        assert not left.exists()


def test_directories_that_may_be_in_use_or_are_not_ours_stay(root: Path, dead_pid: int) -> None:
    alive = root / f"penstock-{os.getpid()}-alive"
    locked = root / f"penstock-{dead_pid}-locked"  # its pid means something else in another container
    stranger = root / "penstock-notes-2026"
    link = root / f"penstock-{dead_pid}-link"
    for path in (alive, locked, stranger):
        path.mkdir()
    link.symlink_to(stranger)
    with (locked / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with runtime_dir():
            assert all(path.exists() for path in (alive, locked, stranger, link))


def test_two_servers_have_two_directories(root: Path) -> None:
    with runtime_dir() as first, runtime_dir() as second:
        assert first != second
        assert first.exists()


def test_a_temporary_directory_too_deep_for_sockets_is_avoided(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = root / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with runtime_dir() as path:
        assert path.parent == Path("/tmp")
        assert len(str(path / "frontend-255")) < 107
