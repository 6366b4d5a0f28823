"""The family's private directory: sockets between its processes, their configurations, shared metrics. Gone at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "penstock-"
LOCK = "lock"
LONGEST = 80  # a Unix socket's path has at most 107 bytes, the file's name included


@contextlib.contextmanager
def runtime_dir() -> Iterator[Path]:
    """A new directory that only this user can enter, named after this process, removed at the end.

    This process holds a lock in it while it lives, so that a later start can tell the directories of killed servers
    from those in use, across containers and reused process ids too.
    """
    root = Path(tempfile.gettempdir())
    if len(os.fsencode(root)) > LONGEST - len(PREFIX) - 20:
        root = Path("/tmp")
    remove_abandoned(root)
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=root))
    lock = os.open(path / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def remove_abandoned(root: Path) -> None:
    """Remove what servers of this user left in `root` when they were killed."""
    for path in root.glob(f"{PREFIX}*-*"):
        with contextlib.suppress(OSError, ValueError):
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            pid = int(path.name.removeprefix(PREFIX).split("-")[0])
            if not alive(pid) and unlocked(path / LOCK):
                shutil.rmtree(path, ignore_errors=True)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def unlocked(path: Path) -> bool:
    """Whether no process holds the lock (or it was never made)."""
    try:
        lock = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
