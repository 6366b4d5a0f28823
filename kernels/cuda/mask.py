"""Logits of tokens that a grammar forbids, made -inf in Triton; the oracle is `TorchOps.mask_logits`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 4096


@triton.jit
def mask_kernel(logits, stride, vocab, bits, words, rows, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(bits + i.to(tl.int64) * words + token // 32, mask=token < vocab, other=0)
    forbidden = ((word >> (token % 32)) & 1) == 0
    row = logits + tl.load(rows + i).to(tl.int64) * stride
    tl.store(row + token, float("-inf"), mask=(token < vocab) & forbidden)


def mask_logits(logits: torch.Tensor, bits: torch.Tensor, rows: torch.Tensor) -> None:
    """Forbid tokens in `rows` (k,) int32 of logits (n, vocab_size), in place; bits (k, words) int32."""
    assert logits.stride(1) == bits.stride(1) == 1
    if len(rows):
        vocab = logits.shape[1]
        grid = (len(rows), -(-vocab // BLOCK))
        mask_kernel[grid](logits, logits.stride(0), vocab, bits, bits.stride(0), rows, BLOCK=BLOCK)
