"""Which tokens one request rules out: all but `allowed_token_ids`, and whatever would complete one of its `bad_words`.

What is ruled out gets a logit far below any other but finite: a rule that comes later and leaves only such tokens (a
grammar, say) still finds a best one among them, and it wins.
"""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np
import torch

from ..kernels.staged import on_device
from ..scheduler.arrays import Int32
from ..scheduler.messages import SamplingParams

DISALLOWED = -1e30  # finite at every temperature that is not greedy
UNWANTED = -1e20  # where nothing but bad words is allowed, one of them comes rather than what is not allowed


class TokenRules:
    """The rules of one slot. A bad word counts in the output alone: what the prompt says completes nothing."""

    __slots__ = ("_disallowed", "_ends", "_recent", "_unwanted")

    def __init__(
        self, sampling: SamplingParams, output: Int32, vocab_size: int, device: torch.device
    ) -> None:
        """`output`: the tokens that the request has produced already."""
        self._disallowed: torch.Tensor | None = None
        if sampling.allowed_token_ids:
            disallowed = np.ones(vocab_size, np.bool_)
            disallowed[sampling.allowed_token_ids] = False
            self._disallowed = on_device(disallowed, device)
        single = [word[0] for word in sampling.bad_words if len(word) == 1]
        self._unwanted = on_device(np.array(single, np.int64), device) if single else None
        # Length of a beginning -> beginning -> the tokens that complete a bad word behind it.
        self._ends: dict[int, dict[tuple[int, ...], list[int]]] = {}
        for word in sampling.bad_words:
            if len(word) > 1:
                ends = self._ends.setdefault(len(word) - 1, defaultdict(list))
                ends[tuple(word[:-1])].append(word[-1])
        longest = max(self._ends, default=0)
        self._recent: deque[int] = deque(output[len(output) - min(len(output), longest) :].tolist(), longest)

    @property
    def follows_output(self) -> bool:
        """Must it be told every token?"""
        return bool(self._ends)

    def apply(self, logits: torch.Tensor) -> None:
        """logits (vocab_size,) float32 of the next token, in place."""
        if self._disallowed is not None:
            logits.masked_fill_(self._disallowed, DISALLOWED)
        if self._unwanted is not None:
            lower(logits, self._unwanted)
        if len(self._recent):
            completing = self._completing()
            if completing:
                lower(logits, on_device(np.array(completing, np.int64), logits.device))

    def follow(self, token: int) -> None:
        """`token` came."""
        self._recent.append(token)

    def _completing(self) -> list[int]:
        recent = tuple(self._recent)
        found: list[int] = []
        for length, ends in self._ends.items():
            if length <= len(recent):
                found += ends.get(recent[len(recent) - length :], ())
        return found


def lower(logits: torch.Tensor, tokens: torch.Tensor) -> None:
    """logits (vocab_size,), in place; what stands lower already stays there."""
    logits[tokens] = logits[tokens].clamp(max=UNWANTED)


def rules_of(
    sampling: SamplingParams, output: Int32, vocab_size: int, device: torch.device
) -> TokenRules | None:
    """None for a request that rules nothing out."""
    if not sampling.allowed_token_ids and not sampling.bad_words:
        return None
    return TokenRules(sampling, np.asarray(output, np.int32), vocab_size, device)
