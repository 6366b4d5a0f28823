"""Where a front end keeps its numbers: float64 cells in a file that the other front ends of the family can read.

Each process writes only its own file, each cell is one aligned 8-byte word, so no reader ever needs a lock. A front
end that is restarted goes on with its predecessor's counters.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

CELL_BYTES = 8
PREFIX = "frontend-"
SUFFIX = ".cells"


class Cells:
    """`values[i]` are this front end's own cells; `total` sums over all front ends of the family."""

    def __init__(self, num_cells: int, directory: Path | None, frontend_id: int) -> None:
        self._directory = directory
        self._num_bytes = num_cells * CELL_BYTES
        self._own_name = f"{PREFIX}{frontend_id}{SUFFIX}"
        if directory is None:
            self._map = mmap.mmap(-1, self._num_bytes)
        else:
            descriptor = os.open(directory / self._own_name, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.ftruncate(descriptor, self._num_bytes)
                self._map = mmap.mmap(descriptor, self._num_bytes)
            finally:
                os.close(descriptor)
        self.values = memoryview(self._map).cast("d")

    def total(self) -> list[float]:
        """Every cell summed over the family."""
        sums: list[float] = list(self.values)
        if self._directory is None:
            return sums
        for path in sorted(self._directory.glob(f"{PREFIX}*{SUFFIX}")):
            if path.name == self._own_name:
                continue
            data = path.read_bytes()
            if len(data) == self._num_bytes:  # else it is being created, and empty
                for index, value in enumerate(memoryview(data).cast("d")):
                    sums[index] += value
        return sums

    def close(self) -> None:
        self.values.release()
        self._map.close()
