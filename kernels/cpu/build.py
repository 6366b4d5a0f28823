"""How the C++ kernels become a shared library, and where it is found again.

It comes with the package, compiled at installation (`setup.py`), if it is the one this machine needs (`target.py`);
else it is compiled once and kept in the user's cache. Nothing here needs more than Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from .target import SOURCE_DIR, compiler_flags, library_key, source_files

logger = logging.getLogger(__name__)

LIBRARY_NAME = "libpenstock_kernels.so"
PREBUILT_DIR = SOURCE_DIR / "prebuilt"  # key -> library, written at installation
COMPILERS = ("g++", "clang++", "c++")
TIMEOUT_S = 300
KEPT_UNUSED_S = 30 * 24 * 3600.0  # libraries of older versions, in the user's cache

Progress: TypeAlias = Callable[[float], None]  # the share of the work that is done, 0..1


class BuildError(Exception):
    """The library could not be built; the message names what was tried and the remedy."""


def silent(fraction: float) -> None:
    """Progress that nobody wants to hear of."""


def library(progress: Progress = silent, *, use_prebuilt: bool = True) -> Path:
    """The library that this machine needs: from the package, from the user's cache, or compiled now.

    Two processes wait for one compilation; `progress` hears of it. Raises BuildError.
    """
    flags = compiler_flags()
    key = library_key(flags)
    prebuilt = PREBUILT_DIR / key / LIBRARY_NAME
    if use_prebuilt and prebuilt.is_file():
        return prebuilt
    directory = cache_root() / key
    target = directory / LIBRARY_NAME
    if target.is_file():
        with contextlib.suppress(OSError):
            os.utime(directory)  # `prune` sees that it is in use
        return target
    compiler = find_compiler()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / "lock"):
            if not target.exists():
                compile_library(compiler, flags, source_files(), target, progress)
                prune(directory)
    except OSError as error:
        raise BuildError(f"{directory} cannot be written ({error.strerror}): set XDG_CACHE_HOME") from error
    return target


def build_prebuilt(directory: Path) -> Path:
    """Compile the library for this machine into `directory`, under its key, for `PREBUILT_DIR`.

    Whatever else was there is removed. Raises BuildError.
    """
    shutil.rmtree(directory, ignore_errors=True)
    compiler, flags = find_compiler(), compiler_flags()
    target = directory / library_key(flags) / LIBRARY_NAME
    try:
        target.parent.mkdir(parents=True)
        compile_library(compiler, flags, source_files(), target)
    except (OSError, BuildError) as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise BuildError(str(error)) from error
    return target


def cache_root() -> Path:
    """Where built libraries are kept: $XDG_CACHE_HOME or ~/.cache, as the XDG base directory specification says."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "penstock" / "kernels"


def prune(used: Path) -> None:
    """Remove the libraries beside `used` that no process has asked for in a long time."""
    for directory in used.parent.iterdir():
        with contextlib.suppress(OSError):
            if directory != used and time.time() - directory.stat().st_mtime > KEPT_UNUSED_S:
                shutil.rmtree(directory)


def find_compiler() -> str:
    """The first C++ compiler on PATH."""
    for name in COMPILERS:
        path = shutil.which(name)
        if path:
            return path
    raise BuildError(
        f"no C++ compiler found (tried {', '.join(COMPILERS)}): install g++ for the fast kernels"
    )


def compile_library(
    compiler: str, flags: tuple[str, ...], sources: list[Path], target: Path, progress: Progress = silent
) -> None:
    """Compile the sources, as many at once as there are cores, link, and put the library at `target` in one rename."""
    began = time.monotonic()
    logger.info("compiling the CPU kernels with %s (once per machine, takes some seconds)", compiler)
    progress(0.0)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        objects = [Path(work) / f"{source.stem}.o" for source in sources]
        commands = [
            [compiler, *flags, "-c", str(source), "-o", str(out)]
            for source, out in zip(sources, objects, strict=True)
        ]
        for done in run_all(commands):
            progress(done / (len(commands) + 1))
        out = Path(work) / target.name
        for _ in run_all([[compiler, "-shared", *map(str, objects), "-o", str(out), "-lpthread"]]):
            progress(1.0)
        out.replace(target)
    logger.info("compiled the CPU kernels in %.1f s: %s", time.monotonic() - began, target)


def run_all(commands: list[list[str]]) -> Iterator[int]:
    """Run compilers side by side; yields how many have ended, after each. When one fails the others are stopped."""
    running: set[subprocess.Popen[bytes]] = set()
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        futures = [pool.submit(run, command, running) for command in commands]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                yield done
        except BaseException:
            for future in futures:
                future.cancel()
            for process in list(running):
                process.kill()
            raise


def run(command: list[str], running: set[subprocess.Popen[bytes]]) -> None:
    """Wait for a compiler; BuildError with its last line when it fails."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    running.add(process)
    try:
        errors = process.communicate(timeout=TIMEOUT_S)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise BuildError(f"{command[0]} ran past {TIMEOUT_S} s: install a faster or newer g++") from None
    finally:
        running.discard(process)
    if process.returncode != 0:
        raise BuildError(f"{command[0]} failed ({last_line(errors)}): install g++ 11 or newer, or clang++ 14")


def last_line(output: bytes) -> str:
    """The line of a compiler's output that says most: the first error, else the last line."""
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[-1] if lines else "no message")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; it goes with the process, so a killed one leaves nothing behind."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
