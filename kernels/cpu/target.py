"""Which library this machine needs: the sources, the compiler's flags and the CPU's instruction sets, and a key of them.

The key is found without a compiler, so that a library that was built elsewhere (at installation) is recognised, or
refused, where there is none.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

SOURCE_DIR = Path(__file__).parent
CPUINFO = Path("/proc/cpuinfo")
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
# What "native" may make of a CPU. x86 lists much beside: what the system has enabled, mitigations, virtualisation;
# such flags change with the kernel, and no compiler looks at them.
X86_INSTRUCTIONS = (
    "mmx",
    "sse",
    "ssse",
    "pni",
    "avx",
    "fma",
    "f16c",
    "bmi",
    "abm",
    "popcnt",
    "movbe",
    "3dnow",
    "lahf",
    "cx16",
    "adx",
    "aes",
    "vaes",
    "pclmul",
    "vpclmul",
    "gfni",
    "sha",
    "sm3",
    "sm4",
    "amx",
    "xop",
    "tbm",
)
ARM_FIELDS = ("Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part")


def compiler_flags() -> tuple[str, ...]:
    return (*FLAGS, *NATIVE_FLAGS.get(platform.machine(), ()))


def source_files() -> list[Path]:
    """What is compiled, the longest first: it takes longest."""
    return sorted(SOURCE_DIR.glob("*.cpp"), key=lambda path: (-path.stat().st_size, path.name))


def library_key(flags: tuple[str, ...]) -> str:
    """A digest of everything that the library depends on: sources, flags, the CPU's instruction sets."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE_DIR.glob("*.cpp")) + sorted(SOURCE_DIR.glob("*.h")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update("\0".join((*flags, *this_cpu())).encode())
    return digest.hexdigest()[:24]


def this_cpu() -> tuple[str, ...]:
    """The machine's architecture and what decides about its instruction sets, in a fixed order."""
    try:
        text = CPUINFO.read_text()
    except OSError:  # not Linux: a user's cache serves one machine
        return (platform.machine(), platform.processor())
    return (platform.machine(), *instruction_sets(text))


def instruction_sets(cpuinfo: str) -> list[str]:
    """Those of the first processor in the text of /proc/cpuinfo."""
    first = cpuinfo.strip().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    if "flags" in fields:
        return sorted(flag for flag in set(fields["flags"].split()) if flag.startswith(X86_INSTRUCTIONS))
    return [" ".join(sorted(fields.get(name, "").split())) for name in ARM_FIELDS]
