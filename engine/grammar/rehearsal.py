"""A compiled grammar that nobody can follow is no use: a short random walk through it, timed.

Compiling bounds nothing of what comes later: a small ambiguous grammar compiles in a millisecond, and then takes
seconds a token, or never ends, and the whole batch would wait for its mask.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .compile import GrammarError

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar

NUM_TOKENS = 256  # ambiguity costs more the longer the text is
BLOCK = 32  # times are means over so many tokens: a single slow one is often a warm-up
MAX_TOKEN_S = 0.02  # thread CPU time of one mask and its token


def rehearse(compiled: CompiledGrammar) -> None:
    """Follow the grammar with tokens drawn at random. Raises `GrammarError` if it allows nothing or is too slow."""
    from xgrammar import GrammarMatcher

    matcher = GrammarMatcher(compiled)
    draw = random.Random(0)
    mask = np.empty((1, -(-compiled.tokenizer_info.vocab_size // 32)), np.int32)
    stop_token_ids = list(matcher.stop_token_ids)
    began = time.thread_time()
    for number in range(1, NUM_TOKENS + 1):
        matcher.fill_next_token_bitmask(mask)
        if number == 1 and not mask.any() and not matcher.is_completed():
            raise GrammarError("it allows no output at all")
        token_id = some_token(mask[0].view(np.uint32), stop_token_ids, draw)
        if token_id is None or not matcher.accept_token(token_id):
            return
        if number % BLOCK == 0:
            now = time.thread_time()
            if now - began > BLOCK * MAX_TOKEN_S:
                raise GrammarError(
                    f"it takes {(now - began) / BLOCK * 1000:.0f} ms a token to follow, the limit is "
                    f"{MAX_TOKEN_S * 1000:.0f} ms: make it less ambiguous"
                )
            began = now


def some_token(words: npt.NDArray[np.uint32], unwanted: list[int], draw: random.Random) -> int | None:
    """A token that the mask (1 bit a token, 32 a word) allows, at random; None if there is none but the unwanted."""
    for token_id in unwanted:
        words[token_id // 32] &= ~np.uint32(1 << token_id % 32)
    (allowed,) = words.nonzero()
    if not len(allowed):
        return None
    index = int(allowed[draw.randrange(len(allowed))])
    word = int(words[index])
    bits = [bit for bit in range(32) if word >> bit & 1]
    return index * 32 + draw.choice(bits)
