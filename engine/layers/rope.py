"""Rotary position embedding: how fast each pair of dimensions turns, and the cos/sin table of all positions."""

from __future__ import annotations

import math

import torch

from ..models.config import ModelConfig, RopeConfig


def rope_table(config: ModelConfig, length: int, device: torch.device) -> torch.Tensor:
    """(length, rotary_dim) float32: cos of every angle in the first half, sin in the second.

    Scaled by the attention factor where the variant has one (YaRN, arXiv:2309.00071 §3.4).
    """
    rope = config.rope
    dim = round(config.head_dim * rope.partial_rotary_factor)
    positions = torch.arange(length, dtype=torch.float32)
    match rope.kind:
        case "default":
            frequencies = base_frequencies(rope.theta, dim)
        case "linear":
            frequencies = base_frequencies(rope.theta, dim) / rope.factor
        case "llama3":
            frequencies = llama3_frequencies(rope, dim)
        case "yarn":
            frequencies = yarn_frequencies(rope, dim)
        case "dynamic":
            frequencies = dynamic_frequencies(rope, dim, config.max_position_embeddings, length)
        case kind:
            raise AssertionError(f"rope kind {kind!r}")
    angles = positions[:, None] * frequencies
    scale = yarn_attention_factor(rope) if rope.kind == "yarn" else 1.0
    return torch.cat((angles.cos() * scale, angles.sin() * scale), dim=-1).to(device)


def base_frequencies(theta: float, dim: int) -> torch.Tensor:
    """(dim / 2,) radians per position: theta^(-2i / dim)."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def llama3_frequencies(rope: RopeConfig, dim: int) -> torch.Tensor:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    frequencies = base_frequencies(rope.theta, dim)
    wavelengths = 2 * math.pi / frequencies
    original = rope.original_max_position_embeddings
    keep = (original / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return (1 - keep) * frequencies / rope.factor + keep * frequencies


def yarn_frequencies(rope: RopeConfig, dim: int) -> torch.Tensor:
    """YaRN's NTK-by-parts (arXiv:2309.00071 §3.2): dimensions that turn often are kept, slow ones stretched."""
    frequencies = base_frequencies(rope.theta, dim)

    def dimension_of(turns: float) -> float:
        """The (fractional) pair that turns so many times within the original context."""
        original = rope.original_max_position_embeddings
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    stretch = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies / rope.factor * stretch + frequencies * (1 - stretch)


def yarn_attention_factor(rope: RopeConfig) -> float:
    """What YaRN multiplies cos and sin by, so that attention logits keep their temperature."""

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1.0 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def dynamic_frequencies(
    rope: RopeConfig, dim: int, max_position_embeddings: int, length: int
) -> torch.Tensor:
    """Dynamic NTK: (length, dim / 2), the base grows once a sequence passes the trained context.

    Every position gets the base of a sequence that ends there. That is what a token-by-token decode with a cache
    computes, and unlike the base of "the longest sequence now in the batch" it depends on the position alone: keys
    can be cached, shared and recomputed in any chunks.
    """
    ends = torch.arange(1, length + 1, dtype=torch.float32).clamp(min=max_position_embeddings)
    growth = (rope.factor * ends / max_position_embeddings - (rope.factor - 1)) ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    return 1.0 / (rope.theta * growth)[:, None] ** exponents
