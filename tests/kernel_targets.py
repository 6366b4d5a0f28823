"""Every back end of the kernels for a test to run on: on a CPU `torch`, `cpu` and `standin` (the CUDA back end, its Triton
kernels interpreted, FlashInfer's replaced by the stand-in), on a GPU `cuda`.

What runs on a GPU is given tensors of the CPU all the same: they are moved there with their strides and aliases, and
what was written to them comes back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_flashinfer import FakeDevice, fake_flashinfer
from penstock.kernels.attention.cpu_backend import CpuAttention
from penstock.kernels.attention.interface import AttentionBackend, AttentionSpec
from penstock.kernels.attention.torch_backend import TorchAttention
from penstock.kernels.cpu.library import Library
from penstock.kernels.cpu.ops import CpuOps
from penstock.kernels.interface import Ops
from penstock.kernels.reference import TorchOps
from penstock.kernels.sampling.interface import Sampling
from penstock.kernels.select import select_attention, select_ops

CUDA = torch.device("cuda")
TARGETS = ["torch", "cpu", "standin", pytest.param("cuda", marks=pytest.mark.gpu)]


class Moved:
    """Calls things on the GPU with tensors of the CPU."""

    def __init__(self) -> None:
        self._bases: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            base = x if x._base is None else x._base
            if id(base) not in self._bases:
                flat = base.as_strided((base.untyped_storage().size() // base.itemsize,), (1,), 0)
                self._bases[id(base)] = (flat, flat.to(CUDA))
            return self._bases[id(base)][1].as_strided(x.shape, x.stride(), x.storage_offset())
        if isinstance(x, tuple | list):
            return type(x)(map(self, x))
        if isinstance(x, dict):
            return {key: self(value) for key, value in x.items()}
        if dataclasses.is_dataclass(x):
            fields = {field.name: self(getattr(x, field.name)) for field in dataclasses.fields(x)}
            return type(x)(**fields)  # type: ignore[operator]
        return x

    def back(self, result: Any) -> Any:
        """The result on the CPU: the caller's own tensor where it is one of those that were moved."""
        for flat, there in self._bases.values():
            flat.copy_(there)
        if isinstance(result, torch.Tensor):
            for flat, there in self._bases.values():
                if there.untyped_storage().data_ptr() == result.untyped_storage().data_ptr():
                    return flat.as_strided(result.shape, result.stride(), result.storage_offset())
            return result.cpu()
        return tuple(map(self.back, result)) if isinstance(result, tuple) else result


class OnGpu:
    """An object of which every method (and every callable it returns) is given moved tensors."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._wrapped, name)
        if name == "sampling":
            return OnGpu(found)
        return self._moved(found) if callable(found) else found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._moved(self._wrapped)(*args, **kwargs)

    def _moved(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            moved = Moved()
            result = function(*moved(args), **moved(kwargs))
            if callable(result) and not isinstance(result, torch.Tensor):
                return OnGpu(result)
            return moved.back(result)

        return call


def make_ops(target: str, library: Library) -> Ops:
    match target:
        case "torch":
            return TorchOps()
        case "cpu":
            return CpuOps(library)
        case "standin":
            from penstock.kernels.cuda.ops import CudaOps

            return CudaOps(fake_flashinfer())
        case "cuda":
            return OnGpu(select_ops("flashinfer", CUDA))  # type: ignore[return-value]
    raise AssertionError(target)


def make_sampling(target: str, library: Library) -> Sampling:
    return make_ops(target, library).sampling


def make_attention(target: str, spec: AttentionSpec, library: Library) -> AttentionBackend:
    match target:
        case "torch":
            return TorchAttention(spec)
        case "cpu":
            return CpuAttention(spec, library)
        case "standin":
            return standin_attention(spec)[0]
        case "cuda":
            return OnGpu(select_attention("flashinfer", CUDA, spec))  # type: ignore[return-value]
    raise AssertionError(target)


def standin_attention(spec: AttentionSpec, architecture: int = 9) -> tuple[Any, Any, FakeDevice]:
    """The back end over the stand-in, the stand-in, and the device that it enqueues on."""
    from penstock.kernels.attention.flashinfer import FlashInferAttention

    device = FakeDevice()
    flashinfer = fake_flashinfer(device)
    backend = FlashInferAttention(spec, torch.device("cpu"), flashinfer, architecture, device.new_fence)
    return backend, flashinfer, device
