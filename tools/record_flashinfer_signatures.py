"""Writes down how FlashInfer's functions are called, for the stand-in that the tests bind every call to.

    FLASHINFER_CUDA_ARCH_LIST=9.0a python tools/record_flashinfer_signatures.py > tests/flashinfer_signatures.json

Needs flashinfer-python (of the version in kernels/cuda/library.py) and any torch; a GPU is not needed.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

import flashinfer
import flashinfer.decode

NAMES = (
    "BatchPrefillWithPagedKVCacheWrapper.__init__",
    "BatchPrefillWithPagedKVCacheWrapper.plan",
    "BatchPrefillWithPagedKVCacheWrapper.run",
    "decode.xqa_batch_decode_with_kv_cache",
    "rmsnorm",
    "fused_add_rmsnorm",
    "silu_and_mul",
)


def written(function: Callable[..., Any]) -> str:
    """Its parameters as its source has them, without types."""
    signature = inspect.signature(function)
    bare = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def find(name: str) -> Callable[..., Any]:
    found: Any = flashinfer
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


if __name__ == "__main__":
    recorded = {"version": flashinfer.__version__, "functions": {name: written(find(name)) for name in NAMES}}
    json.dump(recorded, sys.stdout, indent=1)
    print()
