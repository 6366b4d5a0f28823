"""The C functions as Python sees them: loaded once per process, argument types bound once."""

from __future__ import annotations

import contextlib
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
    "linear_words": (L, (I, I, I, I)),
    "linear_pack": (None, (I, P, L, I, I, I, P)),
    "linear_new": (P, (I, P, P, I, I, I)),
    "linear_free": (None, (P,)),
    "linear": (None, (P, P, L, I, P)),
    "linear_rows": (None, (P, P, I, P)),
    "quantized_bytes": (L, (I, I, I, I)),
    "quantized_pack": (None, (I, P, L, I, I, I, P)),
    "quantized_new": (P, (I, P, P, I, I, I)),
    "quantized_free": (None, (P,)),
    "quantized": (None, (P, P, L, I, P)),
    "quantized_rows": (None, (P, P, I, P)),
    "rms_norm": (None, (P, P, F, L, I, P)),
    "add_rms_norm": (None, (P, P, P, F, L, I, P)),
    "silu_mul": (None, (P, L, I, P)),
    "rotary": (None, (P, L, I, P, P, L, I, P, I, P, P, I, I, F)),
    "mask_logits": (None, (P, L, I, P, I, P, I)),
    "argmax": (None, (P, L, I, I, P)),
    "sample": (None, (P, L, I, P, I, P, P, P, P, P, P, P)),
    "score": (None, (P, L, I, P, I, P, I, P, P, P, P)),
    "penalise": (None, (P, L, I, I, P, P, P, P, P, P, P)),
    "attention_new": (P, (I, I, I, I, I, F, F, I)),
    "attention_free": (None, (P,)),
    "attention_plan": (None, (P, I, P, P, P, P, L)),
    "attention_run": (None, (P, I, P, P, P, P, P, P, *[L] * 12)),
    "embedding": (None, (P, L, L, P, I, P)),
    "copy_rows": (None, (P, L, P, L, L, L)),
    "graph_run": (None, (P, I)),
    "ngram_new": (P, (I, I, I, I, I, I)),
    "ngram_free": (None, (P,)),
    "ngram_start": (None, (P, I, P, I, I, I)),
    "ngram_predict": (None, (P, I, P, I, P, I)),
    "ngram_stop": (None, (P, I)),
    "ngram_clear_pool": (None, (P, I)),
    "ngram_ingest": (L, (P, L)),
    "ngram_extend": (None, (P, I, P, P, P, P)),
    "ngram_propose": (L, (P, I, P, P, P, P, P)),
    "ngram_predicted": (None, (P, I, P, P, P)),
    "ngram_bytes": (L, (P, I)),
}
TYPED = {
    *("linear", "linear_rows", "rms_norm", "add_rms_norm", "silu_mul", "rotary"),
    *("mask_logits", "argmax", "sample", "score"),
    *("quantized", "quantized_pack", "quantized_rows"),
}
# What a recording is made of; each has an entry `penstock_invoke_...` that takes its arguments as words (graph.h).
RECORDABLE = {
    *("linear", "quantized", "rms_norm", "add_rms_norm", "silu_mul", "rotary"),
    *("attention_run", "embedding", "copy_rows", "argmax"),
}
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


def compile_kernels(progress: build.Progress) -> None:
    """Let `load` find the library compiled, where that is possible."""
    with contextlib.suppress(build.BuildError):
        build.library(progress)


@functools.cache
def load() -> Library | None:
    """The library, built if need be; None, after one line of log, where it cannot be had."""
    try:
        path = build.library()
        try:
            return Library(str(path))
        except OSError as error:
            if not path.is_relative_to(build.PREBUILT_DIR):
                raise
            logger.info("the CPU kernels that came with the package do not load here: %s", error)
            return Library(str(build.library(use_prebuilt=False)))
    except (build.BuildError, OSError) as error:
        logger.warning("CPU kernels not available, using plain torch (much slower): %s", error)
        return None
