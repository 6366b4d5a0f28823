"""A model with its weights in place: declared first, so that names and shapes are checked, then filled tensor by tensor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from ..kernels.interface import Linear, Ops
from ..kernels.quantization import Quantization, quantized_bytes
from ..kernels.reference import TorchGatedLinear, TorchLinear, TorchOps
from ..kernels.select import prepare, select_ops
from ..scheduler.messages import EngineConfig
from .choices import Choices
from .errors import ConfigurationError
from .layers.parts import Weights
from .weights import DeclaredWeights, DummyWeights, Names, SafetensorsWeights

log = logging.getLogger(__name__)

PROGRESS_STEP = 0.01
M = TypeVar("M")


def load_ops(backend: str, choices: Choices, progress: Callable[[str, float], None]) -> Ops:
    """The operations of `backend`; if they have to be compiled first, `progress` hears how far that is."""
    prepare(backend, choices.device, lambda fraction: progress("building kernels", fraction))
    torch.set_num_threads(choices.num_threads)
    try:
        return select_ops(backend, choices.device, choices.quantization)
    except ValueError as error:
        raise ConfigurationError(f"--attention-backend: {error}") from None


def leave_cores_to_kernels(ops: Ops, choices: Choices) -> None:
    """The CPU kernels have their own threads (float16 they leave to torch).

    What is left to torch is small, and OpenMP threads that wait for more of it would hold the cores that those need.
    """
    if ops.name == "cpu" and choices.dtype != torch.float16:
        torch.set_num_threads(1)


class DeclaredOps(TorchOps):
    """Finds out how many bytes quantisation saves: it knows only here which tensors are weights of linear layers."""

    def __init__(self, quantization: Quantization | None) -> None:
        super().__init__()
        self._scheme = quantization
        self.saved_bytes = 0

    def linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, is_head: bool = False
    ) -> Linear:
        self._count(weight, is_head=is_head)
        return super().linear(weight, bias, is_head=is_head)

    def gated_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> TorchGatedLinear:
        self._count(weight, is_head=False)
        return TorchGatedLinear(TorchLinear(weight, bias))

    def _count(self, weight: torch.Tensor, *, is_head: bool) -> None:
        if self._scheme is not None:
            self.saved_bytes += weight.nbytes - quantized_bytes(
                weight.shape, self._scheme.bits(is_head=is_head)
            )


def load_weights(
    config: EngineConfig,
    choices: Choices,
    make: Callable[[Weights, Ops], M],
    ops: Ops,
    names: Names,
    progress: Callable[[float], None],
    make_whole: Callable[[Weights, Ops], object] | None = None,
) -> tuple[M, int]:
    """What `make` builds from the checkpoint (or from noise), and the size of its weights in bytes.

    A tied output head counts once: as the table of the embedding, or as what quantisation made of it. Where `make`
    builds a part of a model, `make_whole` declares all of it, which the checkpoint must fit.
    """
    declared, declared_ops = DeclaredWeights(choices.dtype), DeclaredOps(choices.quantization)
    make(declared, declared_ops)
    expected = declared
    if make_whole is not None:
        expected = DeclaredWeights(choices.dtype)
        make_whole(expected, DeclaredOps(choices.quantization))
    last = 0.0

    def seldom(fraction: float) -> None:
        nonlocal last
        if fraction - last >= PROGRESS_STEP:
            last = fraction
            progress(fraction)

    weights: SafetensorsWeights | DummyWeights
    if config.load_format == "dummy":
        weights = DummyWeights(
            expected.shapes,
            seed=config.seed,
            device=choices.device,
            dtype=choices.dtype,
            num_elements=declared.num_elements,
            progress=seldom,
        )
    else:
        weights = SafetensorsWeights(
            config.model_dir,
            expected.shapes,
            device=choices.device,
            dtype=choices.dtype,
            names=names,
            num_elements=declared.num_elements,
            progress=seldom,
        )
    try:
        model = make(weights, ops)
    finally:
        weights.close()
    num_bytes = declared.num_bytes - declared_ops.saved_bytes
    if choices.quantization is not None:
        log.info(
            "weights in %s take %.0f MiB instead of %.0f",
            choices.quantization.scheme,
            num_bytes / 2**20,
            declared.num_bytes / 2**20,
        )
    return model, num_bytes
