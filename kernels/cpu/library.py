"""The C functions as Python sees them: loaded once per process, argument types bound once."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from . import build

logger = logging.getLogger(__name__)

P, I, L, F = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float  # noqa: E741
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "set_threads": (None, (I,)),
    "threads": (I, ()),
    "advise_huge": (None, (P, L)),
    "linear_words": (L, (I, I, I)),
    "linear_pack": (None, (I, P, L, I, I, P)),
    "linear_new": (P, (I, P, P, I, I)),
    "linear_free": (None, (P,)),
    "linear": (None, (P, P, L, I, P)),
    "linear_rows": (None, (P, P, I, P)),
    "rms_norm": (None, (P, P, F, L, I, P)),
    "add_rms_norm": (None, (P, P, P, F, L, I, P)),
    "silu_mul": (None, (P, L, I, P)),
    "rotary": (None, (P, L, I, P, P, L, I, P, I, P, P, I, I, F)),
    "mask_logits": (None, (P, L, I, P, I, P, I)),
    "attention_new": (P, (I, I, I, I, I, F, F)),
    "attention_free": (None, (P,)),
    "attention_plan": (None, (P, I, P, P, P, P, L)),
    "attention_run": (None, (P, I, P, P)),
}
TYPED = {"linear", "linear_rows", "rms_norm", "add_rms_norm", "silu_mul", "rotary", "mask_logits"}
SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}


class Library:
    """`quick` calls keep the GIL (for what takes microseconds: giving it back would let another thread have it for
    milliseconds), `long` calls release it. Typed functions are tables by dtype."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.quick = Functions(ctypes.PyDLL(path))
        self.long = Functions(ctypes.CDLL(path))
        self.quick["set_threads"](torch.get_num_threads())


class Functions(dict[str, Callable[..., Any]]):
    """Name (`rms_norm_bf16`, without the library's prefix) -> function with its types bound."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        for name, (result, arguments) in SIGNATURES.items():
            for full in [f"{name}_{s}" for s in SUFFIXES.values()] if name in TYPED else [name]:
                function = library[f"penstock_{full}"]
                function.restype, function.argtypes = result, arguments
                self[full] = function


@functools.cache
def load() -> Library | None:
    """The library, built if need be; None, after one line of log, where it cannot be had."""
    try:
        return Library(str(build.library()))
    except (build.BuildError, OSError) as error:
        logger.warning("CPU kernels not available, using plain torch (much slower): %s", error)
        return None
