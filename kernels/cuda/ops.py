"""The operations on NVIDIA GPUs: products by cuBLAS, norms and gates by FlashInfer, the rest in Triton."""

from __future__ import annotations

import torch

from ..attention.interface import Rotation
from ..interface import Product, Recorder
from ..reference import TorchOps
from ..sampling.interface import Sampling
from .graph import CudaRecorder
from .library import FlashInfer
from .mask import mask_logits
from .rotate import rotate
from .sampling import CudaSampling

DTYPES = (torch.bfloat16, torch.float16)  # of FlashInfer's kernels
VECTOR_BYTES = 16  # what its kernels read at a time


class CudaOps(TorchOps):
    """What FlashInfer lacks (float32, odd sizes) goes through torch."""

    name = "flashinfer"

    def __init__(self, flashinfer: FlashInfer) -> None:
        super().__init__()
        self._flashinfer = flashinfer
        self.sampling: Sampling = CudaSampling()

    def recorder(self) -> Recorder | None:
        """CUDA graphs."""
        return CudaRecorder()

    def gated_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
        """Prepare gate (I, H) above up (I, H)."""
        return CudaGatedLinear(self, weight, bias)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """(..., H) -> (..., H)."""
        if not fits(x, weight):
            return super().rms_norm(x, weight, eps)
        flat = x.reshape(-1, x.shape[-1])
        return self._flashinfer.rmsnorm(flat, weight, eps).view(x.shape)  # type: ignore[no-any-return]

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """residual + x in place in `residual`; returns (rms_norm of the sum, the sum). `x` is overwritten."""
        if not fits(x, residual, weight) or x.dim() != 2:
            return super().add_rms_norm(x, residual, weight, eps)
        self._flashinfer.fused_add_rmsnorm(x, residual, weight, eps)
        return x, residual

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """(T, 2I) -> (T, I): silu of the first half times the second."""
        if not fits(gate_up) or not gate_up.is_contiguous():
            return super().silu_mul(gate_up)
        return self._flashinfer.silu_and_mul(gate_up)  # type: ignore[no-any-return]

    def rotary(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        cos_sin: torch.Tensor,
        positions: torch.Tensor,
        q_norm: torch.Tensor | None = None,
        k_norm: torch.Tensor | None = None,
        eps: float = 1e-6,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Optional per-head RMSNorm, then NeoX-style rotary embedding (half with half), in place."""
        if not q.stride(2) == k.stride(2) == 1 or (q_norm is None) != (k_norm is None):
            return super().rotary(q, k, cos_sin, positions, q_norm, k_norm, eps)
        rotate(q, k, Rotation(cos_sin, positions, q_norm, k_norm, eps))
        return q, k

    def mask_logits(self, logits: torch.Tensor, bits: torch.Tensor, rows: torch.Tensor) -> None:
        """Forbid tokens in `rows` (k,) int32 of logits (n, vocab_size), in place; bits (k, words) int32."""
        mask_logits(logits, bits, rows)


class CudaGatedLinear:
    """silu(gate) · up of the two halves of a product."""

    def __init__(self, ops: CudaOps, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._ops = ops
        self._gate_up = ops.linear(weight, bias)
        self.out_features, self.in_features = self._gate_up.out_features // 2, self._gate_up.in_features

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, in_features) -> (T, out_features), same dtype."""
        return self._ops.silu_mul(self._gate_up(x))


def fits(*tensors: torch.Tensor) -> bool:
    """Whether FlashInfer's kernels take them: 16 bits, all alike, rows that are read in whole vectors."""
    first = tensors[0]
    return first.dtype in DTYPES and all(
        x.dtype == first.dtype
        and x.stride(-1) == 1
        and x.shape[-1] * x.element_size() % (2 * VECTOR_BYTES) == 0
        for x in tensors
    )
