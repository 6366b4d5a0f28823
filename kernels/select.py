"""Which back end runs on this device: the one table of names, for the operations and for attention."""

from __future__ import annotations

import torch

from .attention.bidirectional import BidirectionalAttention, PaddedBidirectional, TorchBidirectional
from .attention.cpu_backend import CpuAttention
from .attention.interface import AttentionBackend, AttentionSpec
from .attention.torch_backend import TorchAttention
from .cpu.library import Library, load
from .cpu.ops import CpuOps
from .interface import Ops
from .reference import TorchOps

BACKENDS = ("auto", "torch", "cpu")


def select_ops(name: str, device: torch.device) -> Ops:
    """The operations under `name`; ValueError when the name is unknown or cannot run on `device`.

    The CPU kernels run on a thread pool of their own, of torch.get_num_threads() threads at the first call.
    """
    library = library_for(name, device)
    return TorchOps() if library is None else CpuOps(library)


def select_attention(name: str, device: torch.device, spec: AttentionSpec) -> AttentionBackend:
    """The attention back end under `name`; ValueError when the name is unknown or cannot run on `device`."""
    library = library_for(name, device)
    return TorchAttention(spec) if library is None else CpuAttention(spec, library)


def select_bidirectional(name: str, device: torch.device) -> BidirectionalAttention:
    """Attention of encoders under `name`: `torch` is the oracle, every other name torch's fused kernels."""
    return TorchBidirectional() if name == "torch" else PaddedBidirectional(device)


def library_for(name: str, device: torch.device) -> Library | None:
    """The compiled kernels, or None for plain torch: by name, by device, or because they cannot be built."""
    if name not in BACKENDS:
        raise ValueError(f"back end {name!r} is unknown: use one of {', '.join(BACKENDS)}")
    if name == "cpu" and device.type != "cpu":
        raise ValueError(f"back end 'cpu' cannot run on device {str(device)!r}: use auto or torch")
    return load() if name != "torch" and device.type == "cpu" else None
