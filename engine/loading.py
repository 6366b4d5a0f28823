"""A model with its weights in place: declared first, so that names and shapes are checked, then filled tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ..kernels.interface import Ops
from ..kernels.reference import TorchOps
from ..kernels.select import select_ops
from ..scheduler.messages import EngineConfig
from .choices import Choices
from .errors import ConfigurationError
from .layers.parts import Weights
from .weights import DeclaredWeights, DummyWeights, Names, SafetensorsWeights

PROGRESS_STEP = 0.01
M = TypeVar("M")


def load_ops(backend: str, choices: Choices) -> Ops:
    torch.set_num_threads(choices.num_threads)
    try:
        return select_ops(backend, choices.device)
    except ValueError as error:
        raise ConfigurationError(f"--attention-backend: {error}") from None


def leave_cores_to_kernels(ops: Ops, choices: Choices) -> None:
    """The CPU kernels have their own threads (float16 they leave to torch).

    What is left to torch is small, and OpenMP threads that wait for more of it would hold the cores that those need.
    """
    if ops.name == "cpu" and choices.dtype != torch.float16:
        torch.set_num_threads(1)


def load_weights(
    config: EngineConfig,
    choices: Choices,
    make: Callable[[Weights, Ops], M],
    ops: Ops,
    names: Names,
    progress: Callable[[float], None],
) -> tuple[M, int]:
    """What `make` builds from the checkpoint (or from noise), and the size of its weights in bytes."""
    declared = DeclaredWeights(choices.dtype)
    make(declared, TorchOps())
    last = 0.0

    def seldom(fraction: float) -> None:
        nonlocal last
        if fraction - last >= PROGRESS_STEP:
            last = fraction
            progress(fraction)

    weights: SafetensorsWeights | DummyWeights
    if config.load_format == "dummy":
        weights = DummyWeights(
            declared.shapes, seed=config.seed, device=choices.device, dtype=choices.dtype, progress=seldom
        )
    else:
        weights = SafetensorsWeights(
            config.model_dir,
            declared.shapes,
            device=choices.device,
            dtype=choices.dtype,
            names=names,
            progress=seldom,
        )
    try:
        return make(weights, ops), declared.num_bytes
    finally:
        weights.close()
