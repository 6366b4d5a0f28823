"""One pass over a step's q, k and v in Triton: norm and rotate heads, write keys and values into their pages.

The oracle is `TorchOps.rotary` followed by what `TorchAttention.run` writes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..attention.interface import Rotation

HEADS = 4  # of one token, done by one program
WARPS = 2


@triton.jit
def rotate_and_write_kernel(
    q, q_token, q_head,
    k, k_token, k_head,
    v, v_token, v_head,
    q_out, q_out_token, q_out_head,
    k_out, k_out_page, k_out_token, k_out_head,
    v_out, v_out_page, v_out_token, v_out_head,
    places,
    positions,
    cos_sin,
    q_norm, k_norm,
    eps,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr, HALF_PADDED: tl.constexpr,  # of the rotated dimensions; a power of two at least as large
    REST_PADDED: tl.constexpr,  # the same for the dimensions that are not rotated
    PAGE: tl.constexpr,
    ROTATES: tl.constexpr, NORMS: tl.constexpr, WRITES: tl.constexpr, IS_E4M3: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    """Program (t, b): block b of the heads of token t, counting those of q, then k, then v."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    q_blocks: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    kv_blocks: tl.constexpr = (KV_HEADS + HEADS - 1) // HEADS
    if WRITES:
        place = tl.load(places + token).to(tl.int64)
        page, offset, kv_heads = place // PAGE, place % PAGE, tl.where(place >= 0, KV_HEADS, 0)
    else:
        page, offset, kv_heads = token, token * 0, KV_HEADS
    if block < q_blocks:
        heads = block * HEADS + tl.arange(0, HEADS)
        rotate_heads(
            q + token * q_token, q_head, q_out + token * q_out_token, q_out_head,
            heads, heads < Q_HEADS, token, positions, cos_sin, q_norm, eps,
            HEAD_DIM, HALF, HALF_PADDED, REST_PADDED, ROTATES, NORMS, False,
        )  # fmt: skip
    elif block < q_blocks + kv_blocks:
        heads = (block - q_blocks) * HEADS + tl.arange(0, HEADS)
        rotate_heads(
            k + token * k_token, k_head, k_out + page * k_out_page + offset * k_out_token, k_out_head,
            heads, heads < kv_heads, token, positions, cos_sin, k_norm, eps,
            HEAD_DIM, HALF, HALF_PADDED, REST_PADDED, ROTATES, NORMS, IS_E4M3,
        )  # fmt: skip
    else:
        heads = (block - q_blocks - kv_blocks) * HEADS + tl.arange(0, HEADS)
        rotate_heads(
            v + token * v_token, v_head, v_out + page * v_out_page + offset * v_out_token, v_out_head,
            heads, heads < kv_heads, token, positions, cos_sin, k_norm, eps,
            HEAD_DIM, HALF, HALF_PADDED, REST_PADDED, False, False, IS_E4M3,
        )  # fmt: skip


@triton.jit
def rotate_heads(
    source, source_head, target, target_head,
    heads, used, token, positions, cos_sin, norm, eps,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, HALF_PADDED: tl.constexpr, REST_PADDED: tl.constexpr,
    ROTATES: tl.constexpr, NORMS: tl.constexpr, IS_E4M3: tl.constexpr,
):  # fmt: skip
    """Some heads (HEADS,) of one token from `source` to `target`; computed in float32, rounded once."""
    i = tl.arange(0, HALF_PADDED)
    j = 2 * HALF + tl.arange(0, REST_PADDED)
    at, to = source + heads[:, None] * source_head, target + heads[:, None] * target_head
    in_half, in_rest = used[:, None] & (i < HALF)[None, :], used[:, None] & (j < HEAD_DIM)[None, :]
    first = tl.load(at + i[None, :], mask=in_half, other=0.0).to(tl.float32)
    second = tl.load(at + HALF + i[None, :], mask=in_half, other=0.0).to(tl.float32)
    rest = tl.load(at + j[None, :], mask=in_rest, other=0.0).to(tl.float32)
    if NORMS:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1) + tl.sum(rest * rest, 1)
        inverse = (1.0 / tl.sqrt(squares / HEAD_DIM + eps))[:, None]
        first *= inverse * tl.load(norm + i, mask=i < HALF, other=0.0).to(tl.float32)[None, :]
        second *= inverse * tl.load(norm + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)[None, :]
        rest *= inverse * tl.load(norm + j, mask=j < HEAD_DIM, other=0.0).to(tl.float32)[None, :]
    if ROTATES:
        angle = cos_sin + tl.load(positions + token).to(tl.int64) * (2 * HALF)
        cos = tl.load(angle + i, mask=i < HALF, other=0.0)[None, :]
        sin = tl.load(angle + HALF + i, mask=i < HALF, other=0.0)[None, :]
        first, second = first * cos - second * sin, second * cos + first * sin
    if IS_E4M3:  # whose cast would make infinities and NaN of what is out of range
        first = tl.minimum(tl.maximum(first, -448.0), 448.0)
        second = tl.minimum(tl.maximum(second, -448.0), 448.0)
        rest = tl.minimum(tl.maximum(rest, -448.0), 448.0)
    kind = target.dtype.element_ty
    tl.store(to + i[None, :], first.to(kind), mask=in_half)
    tl.store(to + HALF + i[None, :], second.to(kind), mask=in_half)
    tl.store(to + j[None, :], rest.to(kind), mask=in_rest)


def rotate_and_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    places: torch.Tensor,
    rotation: Rotation,
) -> torch.Tensor:
    """Rotated k (tokens, num_kv_heads, head_dim) and v go to `places` (tokens,) int32 of the pages (page * page_size +
    offset; what is negative goes nowhere); the rotated q (tokens, num_heads, head_dim) is returned, contiguous."""
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    launch(q, k, v, q_out, k_pages, v_pages, places, rotation)
    return q_out


def write(
    k: torch.Tensor, v: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, places: torch.Tensor
) -> None:
    """k and v (tokens, num_kv_heads, head_dim), as they are, to `places` (tokens,) int32 of the pages."""
    launch(None, k, v, None, k_pages, v_pages, places, None)


def rotate(q: torch.Tensor, k: torch.Tensor, rotation: Rotation) -> None:
    """q (tokens, num_heads, head_dim) and k (tokens, num_kv_heads, head_dim) in place."""
    launch(q, k, None, q, k, None, None, rotation)


def launch(
    q: torch.Tensor | None,
    k: torch.Tensor,
    v: torch.Tensor | None,
    q_out: torch.Tensor | None,
    k_out: torch.Tensor,
    v_out: torch.Tensor | None,
    places: torch.Tensor | None,
    rotation: Rotation | None,
) -> None:
    """Of q, k and v what is there. Without `places` k_out is (tokens, num_kv_heads, head_dim), else pages."""
    tokens, kv_heads, head_dim = k.shape
    if not tokens:
        return
    if k_out.dim() == 3:
        k_out = k_out.unsqueeze(1)
    for each in (q, k, v, q_out, k_out, v_out):
        assert each is None or each.stride(-1) == 1
    q_heads = 0 if q is None else q.shape[1]
    rotary_dim = head_dim if rotation is None else rotation.cos_sin.shape[1]
    q_norm, k_norm = (None, None) if rotation is None else (rotation.q_norm, rotation.k_norm)
    assert (q_norm is None) == (k_norm is None), "either both q and k are normed or neither"
    if rotation is not None:
        assert rotation.cos_sin.is_contiguous()
        assert rotation.cos_sin.dtype == torch.float32
    blocks = -(-q_heads // HEADS) + -(-kv_heads // HEADS) * (1 if v is None else 2)
    rotate_and_write_kernel[(tokens, blocks)](
        *heads_of(q, k), *heads_of(k, k), *heads_of(v, k),
        *heads_of(q_out, k),
        k_out, *k_out.stride()[:3],
        *((k_out, 0, 0, 0) if v_out is None else (v_out, *v_out.stride()[:3])),
        k if places is None else places,
        k if rotation is None else rotation.positions,
        k if rotation is None else rotation.cos_sin,
        k if q_norm is None else q_norm,
        k if k_norm is None else k_norm,
        0.0 if rotation is None else rotation.eps,
        Q_HEADS=q_heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim,
        HALF=rotary_dim // 2, HALF_PADDED=triton.next_power_of_2(rotary_dim // 2),
        REST_PADDED=triton.next_power_of_2(max(1, head_dim - rotary_dim // 2 * 2)),
        PAGE=k_out.shape[1],
        ROTATES=rotation is not None, NORMS=q_norm is not None,
        WRITES=places is not None, IS_E4M3=k_out.dtype == torch.float8_e4m3fn,
        HEADS=HEADS, num_warps=WARPS,
    )  # fmt: skip


def heads_of(x: torch.Tensor | None, instead: torch.Tensor) -> tuple[Any, ...]:
    """A tensor (tokens, heads, head_dim) as the kernel takes it; what is not there is never touched."""
    return (instead, 0, 0) if x is None else (x, *x.stride()[:2])
