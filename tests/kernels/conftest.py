"""The compiled kernels with their own threads; torch itself on one, because its oracle work is all small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from penstock.kernels.cpu.library import Library, load


@pytest.fixture(scope="session")
def library() -> Library:
    found = load()
    if found is None:
        pytest.skip("no C++ compiler")
    return found


@pytest.fixture(autouse=True)
def one_torch_thread(library: Library) -> Iterator[None]:
    """After `library`, which takes its number of threads from torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
