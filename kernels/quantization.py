"""Weights of 8 or 4 bits: what numbers they can hold, and products with them in plain torch, the oracle of every back end.

A weight is level * scale, with a bfloat16 scale for each block of 128 consecutive inputs of an output. `int8`: the level
is an integer of -127 .. 127 (8.125 bits a weight). `int4`: it is an integer of -8 .. 7 times a multiplier of -63 .. 63,
one for each group of 32 inputs (4.375 bits). There is no zero point: at the same number of bits smaller groups lose less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F

BLOCK, GROUP = 128, 32  # inputs that share a scale, and a multiplier
NEGLIGIBLE = 1e-30  # a scale below it counts as zero

Scheme: TypeAlias = Literal["int8", "int4"]


@dataclass(frozen=True, slots=True)
class Quantization:
    """What becomes of the linear layers of a model."""

    scheme: Scheme

    def bits(self, *, is_head: bool) -> int:
        """Bits of a weight without its scales. An output head has 8 at least: its errors are those of the logits."""
        return 8 if is_head or self.scheme == "int8" else 4


def quantized_bytes(shape: Sequence[int], bits: int) -> int:
    """Of a weight (out, in), scales and multipliers included."""
    out_features, in_features = shape
    groups, blocks = -(-in_features // GROUP), -(-in_features // BLOCK)
    scales = 2 if bits == 8 else 2 + BLOCK // GROUP
    return out_features * (groups * GROUP * bits // 8 + blocks * scales)


def quantize(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight (out, in) as levels (out, blocks, 128) int16 and scales (out, blocks) float32."""
    out_features, in_features = weight.shape
    padded = F.pad(weight.float(), (0, -in_features % BLOCK)).view(out_features, -1, BLOCK)
    return (to_int8 if bits == 8 else to_int4)(padded)


def dequantize(levels: torch.Tensor, scales: torch.Tensor, in_features: int) -> torch.Tensor:
    """(out, in_features) float32."""
    return (levels * scales[:, :, None]).flatten(1)[:, :in_features]


def to_int8(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest weight of a block becomes 127 or -127."""
    scales = (weights.abs().amax(-1) / 127).bfloat16().float()
    return to_integers(weights, scales, -127, 127).short(), scales


def to_int4(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest weight of a group lies on the side of -8, which has a level more than the other.

    Which level it becomes, or how far it is cut, is tried; the least squared error wins. The scales so found are then
    rounded to multiples of one for the block.
    """
    groups = weights.view(*weights.shape[:-1], BLOCK // GROUP, GROUP)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    best, least = torch.zeros_like(largest), torch.full_like(largest, float("inf"))
    tie = 1e-6 * largest.square()  # nearer than that the first wins, not a rounding
    for divisor in (7.0, 7.5, 8.0, 8.5, 9.0, 9.5, 10.0, 11.0):
        scales = -largest / divisor
        error = (to_integers(groups, scales, -8, 7) * scales[..., None] - groups).square().sum(-1)
        better = error < least - tie
        best, least = torch.where(better, scales, best), torch.where(better, error, least)
    steps = (best.abs().amax(-1) / 63).bfloat16().float()
    multipliers = (best / steps.clamp(min=NEGLIGIBLE)[..., None]).round().clamp(-63, 63)
    integers = to_integers(groups, multipliers * steps[..., None], -8, 7)
    return (integers * multipliers[..., None]).flatten(-2).short(), steps


def to_integers(weights: torch.Tensor, scales: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """The integers nearest to weights (..., n) / scales (...), in their number format."""
    inverse = torch.where(scales.abs() < NEGLIGIBLE, 0.0, 1 / scales)
    return (weights * inverse[..., None]).round().clamp(low, high)


class QuantizedTorchLinear:
    """y = x @ weight.T + bias, the weight kept in levels and scales and made whole for each product: slow."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> None:
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self._levels, self._scales = quantize(weight, bits)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, in_features) -> (T, out_features), same dtype; one rounding at the end."""
        bias = None if self._bias is None else self._bias.float()
        weight = dequantize(self._levels, self._scales, self.in_features)
        return F.linear(x.float(), weight, bias).to(x.dtype)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, (N,) int -> (N, in_features)."""
        return dequantize(self._levels[ids], self._scales[ids], self.in_features).to(self.dtype)
