"""The C functions as Python sees them: loaded once per process, argument types bound once."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from . import build

logger = logging.getLogger(__name__)

Call: TypeAlias = tuple[int, tuple[Any, ...]]  # the address of penstock_invoke_..., the arguments

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
    "attention_run": (None, (P, I, P, P, P, P, P, P, *[L] * 12)),
    "embedding": (None, (P, L, L, P, I, P)),
    "graph_run": (None, (P, I)),
}
TYPED = {"linear", "linear_rows", "rms_norm", "add_rms_norm", "silu_mul", "rotary", "mask_logits"}
# What a recording is made of; each has an entry `penstock_invoke_...` that takes its arguments as words (graph.h).
RECORDABLE = {"linear", "rms_norm", "add_rms_norm", "silu_mul", "rotary", "attention_run", "embedding"}
SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}


class Library:
    """`quick` calls keep the GIL (for what takes microseconds: giving it back would let another thread have it for
    milliseconds), `long` calls release it. Typed functions are tables by dtype."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._recording = Recording()
        self.quick = Functions(ctypes.PyDLL(path), self._recording)
        self.long = Functions(ctypes.CDLL(path), self._recording)
        self.quick["set_threads"](torch.get_num_threads())

    def start_recording(self) -> list[Call]:
        """From now on each call of a recordable function is appended to the list returned."""
        assert self._recording.calls is None, "one recording at a time"
        self._recording.calls = []
        return self._recording.calls

    def stop_recording(self) -> None:
        self._recording.calls = None


class Recording:
    """Where calls are written down, if anywhere."""

    calls: list[Call] | None = None


class Functions(dict[str, Callable[..., Any]]):
    """Name (`rms_norm_bf16`, without the library's prefix) -> function with its types bound."""

    def __init__(self, library: ctypes.CDLL, recording: Recording) -> None:
        super().__init__()
        for name, (result, arguments) in SIGNATURES.items():
            for full in [f"{name}_{s}" for s in SUFFIXES.values()] if name in TYPED else [name]:
                function = library[f"penstock_{full}"]
                function.restype, function.argtypes = result, arguments
                self[full] = function
                if name in RECORDABLE:
                    self[full] = recordable(function, library[f"penstock_invoke_{full}"], recording)


def recordable(function: Callable[..., None], invoke: Any, recording: Recording) -> Callable[..., None]:
    """`function`, whose calls are written down while a recording runs."""
    address = ctypes.cast(invoke, ctypes.c_void_p).value
    assert address is not None

    def call(*arguments: Any) -> None:
        if recording.calls is not None:
            recording.calls.append((address, arguments))
        function(*arguments)

    return call


@functools.cache
def load() -> Library | None:
    """The library, built if need be; None, after one line of log, where it cannot be had."""
    try:
        return Library(str(build.library()))
    except (build.BuildError, OSError) as error:
        logger.warning("CPU kernels not available, using plain torch (much slower): %s", error)
        return None
