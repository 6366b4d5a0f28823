"""Which back end runs on this device: the one table of names, for the operations and for attention."""

from __future__ import annotations

import logging

import torch

from .attention.bidirectional import BidirectionalAttention, PaddedBidirectional, TorchBidirectional
from .attention.cpu_backend import CpuAttention
from .attention.interface import AttentionBackend, AttentionSpec
from .attention.torch_backend import TorchAttention
from .cpu.build import Progress
from .cpu.library import Library, compile_kernels, load
from .cpu.ops import CpuOps
from .interface import Ops
from .quantization import Quantization
from .reference import TorchOps

log = logging.getLogger(__name__)

BACKENDS = ("auto", "torch", "cpu", "flashinfer")


def prepare(name: str, device: torch.device, progress: Progress) -> None:
    """Compile what the back end under `name` lacks; `progress` (0..1) hears of it only if there is something to do.

    What goes wrong is told when the back end is selected.
    """
    if name != "torch" and device.type == "cpu":
        compile_kernels(progress)


def select_ops(name: str, device: torch.device, quantization: Quantization | None = None) -> Ops:
    """The operations under `name`; ValueError when the name is unknown or cannot run on `device`.

    With `quantization` they quantise the weights of linear layers (bfloat16 or float32) that they prepare. The CPU
    kernels run on a thread pool of their own, of torch.get_num_threads() threads at the first call.
    """
    if is_flashinfer(name, device):
        return cuda_ops(quantization)
    library = library_for(name, device)
    return TorchOps(quantization) if library is None else CpuOps(library, quantization)


def select_attention(name: str, device: torch.device, spec: AttentionSpec) -> AttentionBackend:
    """The attention back end under `name`; ValueError when the name is unknown or cannot run on `device`."""
    if is_flashinfer(name, device):
        return cuda_attention(device, spec)
    library = library_for(name, device)
    return TorchAttention(spec) if library is None else CpuAttention(spec, library)


def select_bidirectional(name: str, device: torch.device) -> BidirectionalAttention:
    """Attention of encoders under `name`: `torch` is the oracle, every other name torch's fused kernels."""
    return TorchBidirectional() if name == "torch" else PaddedBidirectional(device)


def is_flashinfer(name: str, device: torch.device) -> bool:
    """Whether `name` means FlashInfer on this device. Raises ValueError when names and device do not go together."""
    if name not in BACKENDS:
        raise ValueError(f"back end {name!r} is unknown: use one of {', '.join(BACKENDS)}")
    for wanted, device_type in (("cpu", "cpu"), ("flashinfer", "cuda")):
        if name == wanted and device.type != device_type:
            raise ValueError(f"back end {name!r} cannot run on device {str(device)!r}: use auto or torch")
    return name != "torch" and device.type == "cuda"


def library_for(name: str, device: torch.device) -> Library | None:
    """The compiled kernels, or None for plain torch: by name, by device, or because they cannot be built."""
    return load() if name != "torch" and device.type == "cpu" else None


# FlashInfer and Triton are imported where a GPU is to be used, and nowhere else.


def cuda_ops(quantization: Quantization | None) -> Ops:
    from .cuda.library import load_flashinfer

    if quantization is not None:
        raise ValueError("flashinfer has no products with quantised weights here: leave --quantization out")
    flashinfer = load_flashinfer()
    from .cuda.ops import CudaOps

    return CudaOps(flashinfer)


def cuda_attention(device: torch.device, spec: AttentionSpec) -> AttentionBackend:
    from .cuda.library import load_flashinfer

    flashinfer = load_flashinfer()
    from .attention.flashinfer import FlashInferAttention, why_not

    if reason := why_not(spec):
        log.warning("attention is computed by torch, slowly: flashinfer %s", reason)
        return TorchAttention(spec)
    return FlashInferAttention(spec, device, flashinfer, torch.cuda.get_device_capability(device)[0])
