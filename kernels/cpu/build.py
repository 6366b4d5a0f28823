"""How the C++ kernels become a shared library: compiled once per source, compiler and CPU, kept in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCE_DIR = Path(__file__).parent
COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=default",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-w",
)
# -march=native is x86's word; other machines are told by -mcpu. 512-bit vectors are not the compiler's own choice.
NATIVE_FLAGS = {
    "x86_64": ("-march=native", "-mprefer-vector-width=512"),
    "aarch64": ("-mcpu=native",),
}
TIMEOUT_S = 300


class BuildError(Exception):
    """The library could not be built; the message names what was tried and the remedy."""


def cache_root() -> Path:
    """Where built libraries are kept: $XDG_CACHE_HOME or ~/.cache, as the XDG base directory specification says."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "penstock" / "kernels"


def find_compiler() -> str:
    """The first C++ compiler on PATH."""
    for name in COMPILERS:
        path = shutil.which(name)
        if path:
            return path
    raise BuildError(
        f"no C++ compiler found (tried {', '.join(COMPILERS)}): install g++ for the fast kernels"
    )


def library() -> Path:
    """The built library, from the cache or compiled now (seconds; two processes wait for one compilation)."""
    compiler = find_compiler()
    sources = sorted(SOURCE_DIR.glob("*.cpp"))
    flags = (*FLAGS, *NATIVE_FLAGS.get(platform.machine(), ()))
    directory = cache_root() / cache_key(compiler, flags)
    target = directory / "libpenstock_kernels.so"
    if target.exists():
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / "lock"):
            if not target.exists():
                compile_library(compiler, flags, sources, target)
    except OSError as error:
        raise BuildError(f"{directory} cannot be written ({error.strerror}): set XDG_CACHE_HOME") from error
    return target


def cache_key(compiler: str, flags: tuple[str, ...]) -> str:
    """A digest of everything that the library depends on: sources, flags, compiler version, CPU."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE_DIR.glob("*.cpp")) + sorted(SOURCE_DIR.glob("*.h")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    # What -march=native resolves to is the compiler's reading of this CPU; its macros are that reading.
    native = [flag for flag in flags if flag.startswith("-m")]
    command = [compiler, *native, "-dM", "-E", "-x", "c++", os.devnull]
    macros = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S)
    if macros.returncode != 0:
        raise BuildError(f"{compiler} does not work ({last_line(macros.stderr)}): install a working g++")
    digest.update("\0".join(flags).encode() + macros.stdout)
    return digest.hexdigest()[:24]


def compile_library(compiler: str, flags: tuple[str, ...], sources: list[Path], target: Path) -> None:
    """Compile the sources side by side, link, and put the library at `target` in one rename."""
    began = time.monotonic()
    logger.info("compiling the CPU kernels with %s (once per machine, takes some seconds)", compiler)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        objects = [Path(work) / f"{source.stem}.o" for source in sources]
        commands = [
            [compiler, *flags, "-c", str(source), "-o", str(out)]
            for source, out in zip(sources, objects, strict=True)
        ]
        running = [subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for c in commands]
        try:
            for command, process in zip(commands, running, strict=True):
                check(command, process)
            out = Path(work) / target.name
            command = [compiler, "-shared", *map(str, objects), "-o", str(out), "-lpthread"]
            check(command, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        out.replace(target)
    logger.info("compiled the CPU kernels in %.1f s: %s", time.monotonic() - began, target)


def check(command: list[str], process: subprocess.Popen[bytes]) -> None:
    """Wait for a compiler; BuildError with its last line when it fails."""
    try:
        errors = process.communicate(timeout=TIMEOUT_S)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise BuildError(f"{command[0]} ran past {TIMEOUT_S} s: install a faster or newer g++") from None
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
