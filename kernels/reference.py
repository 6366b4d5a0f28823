"""The operations in plain torch, on any device: the oracle of every back end and the fallback of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .interface import Linear, Product, Recorder
from .quantization import Quantization, QuantizedTorchLinear
from .sampling.interface import Sampling
from .sampling.reference import TorchSampling


class TorchLinear:
    """y = x @ weight.T + bias, the weight kept as it came."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, in_features) -> (T, out_features), same dtype."""
        return F.linear(x, self.weight, self.bias)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, (N,) int -> (N, in_features)."""
        return F.embedding(ids, self.weight)


class TorchGatedLinear:
    """silu(gate) · up of the two halves of a linear's features."""

    def __init__(self, gate_up: Linear) -> None:
        self._gate_up = gate_up
        self.out_features, self.in_features = gate_up.out_features // 2, gate_up.in_features

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, in_features) -> (T, out_features), same dtype."""
        return silu_mul(self._gate_up(x))


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """(T, 2I) -> (T, I): silu of the first half times the second."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


class TorchOps:
    name = "torch"

    def __init__(self, quantization: Quantization | None = None) -> None:
        self.sampling: Sampling = TorchSampling()
        self._quantization = quantization

    def recorder(self) -> Recorder | None:
        """Plain torch runs as it comes."""
        return None

    def embedding(self, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Rows of table (V, H) at ids (T,) int32: (T, H)."""
        return F.embedding(ids, table)

    def linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, is_head: bool = False
    ) -> Linear:
        """Prepare a weight (out, in) for products."""
        if self._quantization is None:
            return TorchLinear(weight, bias)
        return QuantizedTorchLinear(weight, bias, self._quantization.bits(is_head=is_head))

    def gated_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
        """Prepare gate (I, H) above up (I, H)."""
        return TorchGatedLinear(self.linear(weight, bias))

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """(..., H) -> (..., H): x / sqrt(mean(x²) + eps) · weight, rounded once at the end."""
        x32 = x.float()
        inverse = torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + eps)
        return (x32 * inverse * weight.float()).to(x.dtype)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """residual + x in place in `residual`; returns (rms_norm of the sum, the sum)."""
        residual.add_(x)
        return self.rms_norm(residual, weight, eps), residual

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """(T, 2I) -> (T, I): silu of the first half times the second."""
        return silu_mul(gate_up)

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
        (max_position, rotary_dim) float32. Dimensions from rotary_dim on are normed but not rotated.
        """
        cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)
        for x, norm in ((q, q_norm), (k, k_norm)):
            x.copy_(rotate(x.float() if norm is None else norm_heads(x, norm, eps), cos, sin))
        return q, k

    def copy_rows(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """source (T, N) into target (T, N)."""
        target.copy_(source)

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Tensors (T, ...) beside each other, along the second dimension."""
        return torch.cat(tuple(parts), dim=1)

    def mask_logits(self, logits: torch.Tensor, bits: torch.Tensor, rows: torch.Tensor) -> None:
        """Forbid tokens in `rows` (k,) int32 of logits (n, vocab_size), in place; bits (k, words) int32."""
        places = torch.arange(32, dtype=torch.int32, device=bits.device)
        allowed = ((bits[:, :, None] >> places) & 1).bool().flatten(1)[:, : logits.shape[1]]
        index = rows.long()
        logits[index] = logits[index].masked_fill_(~allowed, float("-inf"))


def norm_heads(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension, in float32 and left there: (T, heads, head_dim)."""
    x32 = x.float()
    return x32 * torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + eps) * weight.float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (T, heads, head_dim) by angles given as cos, sin (T, 1, rotary_dim / 2)."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
