"""A drafter that knows what will be said, and is wrong now and then on purpose; and steps that always take as long."""

from __future__ import annotations

import numpy as np
from penstock.engine.speculation import Speculation
from penstock.scheduler.arrays import Int32


class OracleDrafter:
    """Knows whole texts (prompt and output). Every `wrong_every`-th token that it drafts is another one; a text that it
    does not know gets no draft."""

    num_sources = 1

    def __init__(self, texts: list[list[int]], wrong_every: int, vocab_size: int) -> None:
        self._texts = texts
        self._wrong_every = wrong_every
        self._vocab_size = vocab_size
        self._known: dict[int, list[int]] = {}
        self.num_drafted = 0
        self.num_verified = 0

    def start(
        self,
        slot: int,
        tokens: Int32,
        prediction: Int32 | None = None,
        *,
        num_prompt_tokens: int | None = None,
        cache_salt: str = "",
    ) -> None:
        assert slot not in self._known, "the slot was not stopped"
        self._known[slot] = tokens.tolist()

    def extend(self, slots: Int32, counts: Int32, tokens: Int32, verified: Int32 | None = None) -> None:
        assert verified is not None
        self.num_verified += int(verified.sum())
        begin = 0
        for slot, count in zip(slots.tolist(), counts.tolist(), strict=True):
            self._known[slot] += tokens[begin : begin + count].tolist()
            begin += count
        assert begin == len(tokens)

    def propose(self, slots: Int32, max_lens: Int32) -> tuple[Int32, Int32]:
        drafts = [
            self._draft(slot, most) for slot, most in zip(slots.tolist(), max_lens.tolist(), strict=True)
        ]
        flat = [token for draft in drafts for token in draft]
        return np.array([len(draft) for draft in drafts], np.int32), np.array(flat, np.int32)

    def sources(self) -> Int32:
        raise AssertionError("asked for by nobody who does not adapt")

    def predicted(self, slots: Int32) -> tuple[Int32, Int32]:
        none = np.zeros(len(slots), np.int32)
        return none, none

    def stop(self, slot: int) -> None:
        del self._known[slot]

    def _draft(self, slot: int, most: int) -> list[int]:
        known = self._known[slot]
        whole = next((text for text in self._texts if text[: len(known)] == known), known)
        draft = []
        for token in whole[len(known) : len(known) + most]:
            self.num_drafted += 1
            wrong = self.num_drafted % self._wrong_every == 0
            draft.append((token + wrong) % self._vocab_size)
        return draft


def oracle_speculation(
    num_slots: int, texts: list[list[int]], *, max_draft_tokens: int, wrong_every: int, vocab_size: int
) -> Speculation:
    drafter = OracleDrafter(texts, wrong_every, vocab_size)
    return Speculation(num_slots, drafter, max_draft_tokens=max_draft_tokens, adaptive=False)


class Clockwork:
    """What a step costs on no machine, so that lengths are chosen the same way in every run."""

    is_known = True

    def observe(self, num_tokens: int, seconds: float) -> None: ...

    def seconds(self, num_tokens: int) -> float:
        return 1.0 + num_tokens / 500
