"""FlashInfer, loaded when a GPU is to be used and not before."""

from __future__ import annotations

import importlib
import os
from typing import Any, TypeAlias

FlashInfer: TypeAlias = Any  # the module `flashinfer`, which has no types

VERSION = "0.7.2.post1"
INSTALL = 'pip install "penstock[cuda]"'


def load_flashinfer() -> FlashInfer:
    """The module. Raises ValueError if it is not installed, or another version than the one that is called here.

    It is compiled for the GPU's kind on first use of each kernel, unless that was done before (`modules.py`).
    """
    # The norms of the CUDA module, whether or not a second, interpreted implementation is installed beside them.
    os.environ.setdefault("FLASHINFER_USE_CUDA_NORM", "1")
    try:
        flashinfer = importlib.import_module("flashinfer")
        importlib.import_module("flashinfer.decode")
    except ImportError as error:
        raise ValueError(f"flashinfer cannot be imported ({error}): {INSTALL}, or use torch") from None
    found = getattr(flashinfer, "__version__", "unknown")
    if found != VERSION:
        raise ValueError(f"flashinfer {found} is installed, {VERSION} is needed: {INSTALL}")
    return flashinfer
