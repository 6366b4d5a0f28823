"""The operations on CPUs: C++ kernels for bfloat16 and float32, plain torch for other dtypes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..interface import Linear, Product, Recorder
from ..quantization import Quantization
from ..reference import TorchGatedLinear, TorchLinear, TorchOps
from ..sampling.interface import Sampling
from .graph import CpuRecorder
from .library import SUFFIXES, Library
from .quantized import QuantizedCpuLinear
from .sampling import CpuSampling

# What is expected to run longer than some 50 microseconds gives the GIL back meanwhile.
LONG_PRODUCT = 5_000_000  # multiply-adds of a linear
LONG_PASS = 200_000  # elements of a norm, gate or rotation
LONG_MASK = 1_000_000  # logits


class CpuLinear:
    """y = x @ weight.T + bias over a weight repacked into the kernels' panels; the original is not kept.

    `gated`: y = silu(gate) · up, gate being the first half of that product's features and up the second.
    """

    def __init__(
        self, library: Library, weight: torch.Tensor, bias: torch.Tensor | None, *, gated: bool = False
    ) -> None:
        rows, self.in_features = weight.shape
        self.out_features = rows // 2 if gated else rows
        self.gated = gated
        self.dtype = weight.dtype
        suffix, is_bf16 = SUFFIXES[weight.dtype], int(weight.dtype == torch.bfloat16)
        self._library = library
        shape = (self.out_features, self.in_features, int(gated))
        words = library.quick["linear_words"](is_bf16, *shape)
        self._packed = torch.empty(words, dtype=torch.int32)
        self._bias = None if bias is None else bias.float().contiguous()
        weight = weight if weight.stride(1) == 1 else weight.contiguous()
        packed = self._packed.data_ptr()
        library.quick["advise_huge"](packed, self._packed.nbytes)
        library.long["linear_pack"](is_bf16, weight.data_ptr(), weight.stride(0), *shape, packed)
        self._handle = library.quick["linear_new"](
            is_bf16, packed, None if self._bias is None else self._bias.data_ptr(), *shape
        )
        self._quick, self._long = library.quick[f"linear_{suffix}"], library.long[f"linear_{suffix}"]
        self._rows = library.quick[f"linear_rows_{suffix}"]
        self._quick_tokens = LONG_PRODUCT // (rows * self.in_features)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._library.quick["linear_free"](self._handle)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, in_features) -> (T, out_features), same dtype."""
        assert x.shape[1] == self.in_features
        assert x.dtype == self.dtype
        if x.stride(1) != 1:
            x = x.contiguous()
        tokens = x.shape[0]
        y = torch.empty((tokens, self.out_features), dtype=self.dtype)
        call = self._quick if tokens <= self._quick_tokens else self._long
        call(self._handle, x.data_ptr(), x.stride(0), tokens, y.data_ptr())
        return y

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, (N,) int -> (N, in_features), gathered out of the panels (microseconds a row)."""
        assert not self.gated, "a gated product is no table"
        ids = ids.to(torch.int32).contiguous()
        assert not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < self.out_features
        out = torch.empty((len(ids), self.in_features), dtype=self.dtype)
        self._rows(self._handle, ids.data_ptr(), len(ids), out.data_ptr())
        return out


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
        if self._quantization is not None:
            bits = self._quantization.bits(is_head=is_head)
            return QuantizedCpuLinear(self._library, weight, bias, bits)
        return CpuLinear(self._library, weight, bias)

    def gated_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
        """Repack gate (I, H) above up (I, H), so that one pass makes silu(gate) · up."""
        if weight.dtype not in SUFFIXES:
            return TorchGatedLinear(TorchLinear(weight, bias))
        if self._quantization is not None:
            bits = self._quantization.bits(is_head=False)
            return QuantizedCpuLinear(self._library, weight, bias, bits, gated=True)
        return CpuLinear(self._library, weight, bias, gated=True)

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
