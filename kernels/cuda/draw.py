"""One token for each row of logits in Triton: what `TorchSampling.sample` draws, in one launch that waits for nothing.

FlashInfer's samplers draw by a row's place in the batch, so a request would get other tokens in other company. Here one
program has one row, and a uniform number decides by the inverse CDF. The thresholds of top-k and top-p are exact and
need no sort: a search over the bit patterns of the logits, which are ordered as the numbers are, with the count or the
mass above three candidates found in each pass over the row (which stays in the L2 cache).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..sampling.interface import SamplingParameters

BLOCK = 4096
WARPS = 16
# Trailing bits of a float32 that are the same in all numbers of a dtype with as many sign and mantissa bits.
UNUSED_BITS = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}


@triton.jit(do_not_specialize=["has_rows"])
def draw_kernel(
    logits, stride, vocab,
    has_rows, rows, slots, uniform,
    temperature, top_k, top_p, min_p,
    tokens,
    UNUSED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    row = logits + tl.where(has_rows != 0, tl.load(rows + i), i).to(tl.int64) * stride
    slot = tl.load(slots + i)
    heat = tl.load(temperature + slot)
    at = tl.arange(0, BLOCK)

    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = at
    for first in range(0, vocab, BLOCK):
        x = load(row, first + at, vocab)
        better = x > best
        best = tl.where(better, x, best)
        where = tl.where(better, first + at, where)
    top = tl.max(best, 0)
    token = tl.min(tl.where(best == top, where, 2147483647), 0)

    if (heat > 0.0) & (top > float("-inf")):
        k = tl.load(top_k + slot)
        p = tl.load(top_p + slot).to(tl.float64)
        least = tl.load(min_p + slot)
        ceiling = key_of(top, UNUSED).to(tl.int64) + 1
        threshold = ceiling * 0 - (2147483648 >> UNUSED)  # below every key
        if (k > 0) & (k < vocab):
            threshold = search(
                row, vocab, threshold, ceiling, k.to(tl.float64), top, heat, False, UNUSED, BLOCK
            )
        if p < 1.0:
            mass, _, _ = above(row, vocab, threshold, threshold, threshold, top, heat, True, UNUSED, BLOCK)
            wanted = p * mass
            threshold = search(row, vocab, threshold, ceiling, wanted, top, heat, True, UNUSED, BLOCK)

        total = (i * 0).to(tl.float64)
        for first in range(0, vocab, BLOCK):
            total += tl.sum(
                kept(row, first + at, vocab, threshold, least, top, heat, UNUSED).to(tl.float64), 0
            )
        point = tl.load(uniform + i) * total

        # The block that holds the point, or the last one that weighs anything: rounding may put the point at the end.
        before = total * 0.0
        block = i * 0
        block_before = before
        found = block
        for first in range(0, vocab, BLOCK):
            weight = tl.sum(
                kept(row, first + at, vocab, threshold, least, top, heat, UNUSED).to(tl.float64), 0
            )
            takes = (found == 0) & (weight > 0.0)
            block = tl.where(takes, first, block)
            block_before = tl.where(takes, before, block_before)
            before += weight
            found = tl.where(before > point, 1, found)
        weights = kept(row, block + at, vocab, threshold, least, top, heat, UNUSED)
        ends = block_before + tl.cumsum(weights.to(tl.float64), 0)
        passed = tl.sum((ends <= point).to(tl.int32), 0)
        last = tl.max(tl.where(weights > 0.0, at, 0), 0)
        token = block + tl.minimum(passed, last)
    tl.store(tokens + i, token)


@triton.jit
def load(row, at, vocab):
    """float32; what is outside of the row, and what is no number, is never drawn."""
    x = tl.load(row + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def key_of(x, UNUSED: tl.constexpr):
    """int32 that are ordered as the numbers are, equal where these are."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF) >> UNUSED


@triton.jit
def weigh(x, top, heat):
    """Relative to the most likely token's, which is 1 even where its logit is infinite."""
    return tl.where(x == top, 1.0, tl.exp((x - top) / heat))


@triton.jit
def kept(row, at, vocab, threshold, least, top, heat, UNUSED: tl.constexpr):
    """Weights of some tokens, 0 where they are cut off."""
    x = load(row, at, vocab)
    weight = weigh(x, top, heat)
    return tl.where((key_of(x, UNUSED).to(tl.int64) >= threshold) & (weight >= least), weight, 0.0)


@triton.jit
def above(
    row, vocab, one, two, three, top, heat, WEIGHS: tl.constexpr, UNUSED: tl.constexpr, BLOCK: tl.constexpr
):
    """Numbers (or masses) of tokens whose keys are at least `one`, `two`, `three`; float64."""
    at = tl.arange(0, BLOCK)
    ones = tl.zeros((BLOCK,), tl.float32)
    twos = tl.zeros((BLOCK,), tl.float32)
    threes = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, vocab, BLOCK):
        x = load(row, first + at, vocab)
        key = key_of(x, UNUSED).to(tl.int64)
        if WEIGHS:
            unit = weigh(x, top, heat)
        else:
            unit = tl.where(first + at < vocab, 1.0, 0.0)
        ones += tl.where(key >= one, unit, 0.0)
        twos += tl.where(key >= two, unit, 0.0)
        threes += tl.where(key >= three, unit, 0.0)
    return tl.sum(ones.to(tl.float64), 0), tl.sum(twos.to(tl.float64), 0), tl.sum(threes.to(tl.float64), 0)


@triton.jit
def search(
    row, vocab, low, high, wanted, top, heat, WEIGHS: tl.constexpr, UNUSED: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest key at and above which there is as much as is `wanted`: at `low` there is, at `high` there is not."""
    while low + 1 < high:
        width = high - low
        one, two, three = low + width // 4, low + width // 2, low + width * 3 // 4
        ones, twos, threes = above(row, vocab, one, two, three, top, heat, WEIGHS, UNUSED, BLOCK)
        # Where `one` is `low`, and `two` or `three` each other, they answer alike.
        low = tl.where(
            threes >= wanted, three, tl.where(twos >= wanted, two, tl.where(ones >= wanted, one, low))
        )
        high = tl.where(
            ones < wanted, one, tl.where(twos < wanted, two, tl.where(threes < wanted, three, high))
        )
    return low


def draw(
    logits: torch.Tensor,  # (n, V) float32, bfloat16 or float16
    how: SamplingParameters,
    slots: torch.Tensor,  # (m,) int32
    uniform: torch.Tensor,  # (m,) float64
    rows: torch.Tensor | None = None,  # (m,) int32: whose logits; None = row i is slot i's
) -> torch.Tensor:
    """(m,) int32 tokens, as `Sampling.sample` has it."""
    assert logits.stride(1) == 1
    tokens = torch.empty(len(slots), dtype=torch.int32, device=logits.device)
    if len(slots):
        vocab = logits.shape[1]
        block = min(BLOCK, triton.next_power_of_2(vocab))
        draw_kernel[(len(slots),)](
            logits, logits.stride(0), vocab, int(rows is not None), slots if rows is None else rows, slots, uniform,
            how.temperature, how.top_k, how.top_p, how.min_p, tokens,
            UNUSED=UNUSED_BITS[logits.dtype], BLOCK=block,
            num_warps=max(1, min(WARPS, block // 128)),
        )  # fmt: skip
    return tokens
