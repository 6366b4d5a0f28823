"""The operations on CPUs: C++ kernels for bfloat16 and float32, plain torch for other dtypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..interface import Linear, Product, Recorder
from ..quantization import Quantization
from ..reference import TorchGatedLinear, TorchLinear, TorchOps
from ..sampling.interface import Sampling
from .graph import CpuRecorder
from .library import SUFFIXES, Library
from .linear import CpuLinear
from .sampling import CpuSampling

# What is expected to run longer than some 50 microseconds gives the GIL back meanwhile.
LONG_PASS = 200_000  # elements of a norm, gate or rotation
LONG_MASK = 1_000_000  # logits


class CpuOps:
    name = "cpu"

    def __init__(self, library: Library, quantization: Quantization | None = None) -> None:
        self._library = library
        self._torch = TorchOps()
        self._quantization = quantization
        self.sampling: Sampling = CpuSampling(library)
        self._quick = kernels_of(library.quick)
        self._long = kernels_of(library.long)

    def recorder(self) -> Recorder | None:
        """Of passes in bfloat16 and float32; what falls back to torch cannot be recorded."""
        return CpuRecorder(self._library)

    def embedding(self, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Rows of table (V, H) at ids (T,) int32: (T, H). An id outside of the table gives zeros."""
        assert ids.dtype == torch.int32
        assert ids.is_contiguous()
        assert table.is_contiguous()
        rows, width = table.shape
        out = torch.empty((len(ids), width), dtype=table.dtype)
        call = (self._library.quick if out.numel() < LONG_PASS else self._library.long)["embedding"]
        call(table.data_ptr(), rows, width * table.element_size(), ids.data_ptr(), len(ids), out.data_ptr())
        return out

    def linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, is_head: bool = False
    ) -> Linear:
        """Repack or quantise a weight (out, in); the caller should drop its own reference."""
        if weight.dtype not in SUFFIXES:
            return TorchLinear(weight, bias)
        return CpuLinear(self._library, weight, bias, bits=self._bits(is_head=is_head))

    def gated_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
        """Repack gate (I, H) above up (I, H), so that one pass makes silu(gate) · up."""
        if weight.dtype not in SUFFIXES:
            return TorchGatedLinear(TorchLinear(weight, bias))
        return CpuLinear(self._library, weight, bias, gated=True, bits=self._bits(is_head=False))

    def _bits(self, *, is_head: bool) -> int | None:
        return None if self._quantization is None else self._quantization.bits(is_head=is_head)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """(..., H) -> (..., H)."""
        if x.dtype not in SUFFIXES or weight.dtype != x.dtype or not weight.is_contiguous():
            return self._torch.rms_norm(x, weight, eps)
        x = x.contiguous()
        out = torch.empty_like(x)
        n = x.shape[-1]
        call = self._kernel("rms_norm", x)
        call(x.data_ptr(), weight.data_ptr(), eps, x.numel() // n, n, out.data_ptr())
        return out

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """residual + x in place in `residual`; returns (rms_norm of the sum, the sum)."""
        if (
            x.dtype not in SUFFIXES
            or not residual.is_contiguous()
            or not x.dtype == residual.dtype == weight.dtype
        ):
            return self._torch.add_rms_norm(x, residual, weight, eps)
        x = x.contiguous()
        out = torch.empty_like(x)
        n = x.shape[-1]
        call = self._kernel("add_rms_norm", x)
        call(x.data_ptr(), residual.data_ptr(), weight.data_ptr(), eps, x.numel() // n, n, out.data_ptr())
        return out, residual

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """(T, 2I) -> (T, I): silu of the first half times the second."""
        if gate_up.dtype not in SUFFIXES:
            return self._torch.silu_mul(gate_up)
        gate_up = gate_up.contiguous()
        tokens, width = gate_up.shape
        out = torch.empty((tokens, width // 2), dtype=gate_up.dtype)
        call = self._kernel("silu_mul", gate_up)
        call(gate_up.data_ptr(), tokens, width // 2, out.data_ptr())
        return out

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
        """Optional per-head RMSNorm, then NeoX-style rotary embedding (half with half), in place.

        q (T, num_heads, head_dim), k (T, num_kv_heads, head_dim), positions (T,) int32, cos_sin
        (max_position, rotary_dim) float32; a token's heads must lie side by side (T may be strided).
        """
        tokens, q_heads, head_dim = q.shape
        norms = [w for w in (q_norm, k_norm) if w is not None]
        if (
            q.dtype not in SUFFIXES
            or k.dtype != q.dtype
            or any(w.dtype != q.dtype or not w.is_contiguous() for w in norms)
            or not q.stride(1) == k.stride(1) == head_dim
            or not q.stride(2) == k.stride(2) == 1
            or cos_sin.dtype != torch.float32
            or not cos_sin.is_contiguous()
            or positions.dtype != torch.int32
        ):
            return self._torch.rotary(q, k, cos_sin, positions, q_norm, k_norm, eps)
        call = self._kernel("rotary", q)
        call(
            q.data_ptr(),
            q.stride(0),
            q_heads,
            None if q_norm is None else q_norm.data_ptr(),
            k.data_ptr(),
            k.stride(0),
            k.shape[1],
            None if k_norm is None else k_norm.data_ptr(),
            tokens,
            cos_sin.data_ptr(),
            positions.data_ptr(),
            head_dim,
            cos_sin.shape[1],
            eps,
        )
        return q, k

    def copy_rows(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """source (T, N) into target (T, N), of one dtype; either's rows may be part of longer ones."""
        assert source.shape == target.shape
        assert source.dtype == target.dtype
        rows, width = source.shape
        if width > 1 and not source.stride(1) == target.stride(1) == 1:
            target.copy_(source)
            return
        size = source.element_size()
        call = (self._library.quick if source.numel() < LONG_PASS else self._library.long)["copy_rows"]
        call(
            source.data_ptr(),
            source.stride(0) * size,
            target.data_ptr(),
            target.stride(0) * size,
            rows,
            width * size,
        )

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Tensors (T, ...) beside each other, along the second dimension."""
        out = torch.empty((len(parts[0]), sum(part.shape[1] for part in parts)), dtype=parts[0].dtype)
        begin = 0
        for part in parts:
            self.copy_rows(part, out[:, begin : begin + part.shape[1]])
            begin += part.shape[1]
        return out

    def mask_logits(self, logits: torch.Tensor, bits: torch.Tensor, rows: torch.Tensor) -> None:
        """Forbid tokens in `rows` (k,) int32 of logits (n, vocab_size), in place; bits (k, words) int32."""
        if logits.dtype not in SUFFIXES or logits.stride(1) != 1 or not bits.is_contiguous():
            return self._torch.mask_logits(logits, bits, rows)
        vocab, count = logits.shape[1], len(rows)
        assert bits.shape == (count, -(-vocab // 32))
        table = self._quick if count * vocab < LONG_MASK else self._long
        table[logits.dtype]["mask_logits"](
            logits.data_ptr(),
            logits.stride(0),
            vocab,
            bits.data_ptr(),
            bits.shape[1],
            rows.data_ptr(),
            count,
        )
        return None

    def _kernel(self, name: str, x: torch.Tensor) -> Callable[..., None]:
        table = self._quick if x.numel() < LONG_PASS else self._long
        return table[x.dtype][name]


def kernels_of(
    functions: dict[str, Callable[..., None]],
) -> dict[torch.dtype, dict[str, Callable[..., None]]]:
    """dtype -> name -> kernel, so that a call looks nothing up by string formatting."""
    names = ("rms_norm", "add_rms_norm", "silu_mul", "rotary", "mask_logits")
    return {dtype: {name: functions[f"{name}_{s}"] for name in names} for dtype, s in SUFFIXES.items()}
