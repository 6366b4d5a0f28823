"""What malloc is told is taken by it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_blocks_are_used_again_without_page_faults() -> None:
    """In a process of its own: the settings are for life."""
    code = """
import resource, sys, threading
import numpy as np
from penstock.engine.malloc import keep_freed_memory

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        held = [np.empty(size << 20, np.uint8) for size in (16, 25, 12, 4)]
        for block in held:
            block[::4096] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    assert keep_freed_memory()
work = threading.Thread(target=lambda: (faults(2), print(faults(8))))
work.start()
work.join()
"""

    def count(how: str) -> int:
        run = subprocess.run([sys.executable, "-c", code, how], check=True, capture_output=True, text=True)
        return int(run.stdout)

    assert count("keep") < 100
    assert count("leave") > count("keep")
