"""Where each slot's output stands in its grammar, and what may come next."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from ...scheduler.arrays import Int32
from ...scheduler.messages import FinishReason
from ..host_memory import lazy_zeros
from ..streams import HostStream, Stream
from .store import Grammar

if TYPE_CHECKING:
    from xgrammar import BatchGrammarMatcher, GrammarMatcher

log = logging.getLogger(__name__)

Ended: TypeAlias = tuple[int, FinishReason]  # a row that cannot go on, and why


@dataclass(frozen=True, slots=True)
class Start:
    """A slot's request from now on: its grammar (None: it has none), stop ids, and the output that it has already."""

    slot: int
    grammar: Grammar | None
    stop_token_ids: list[int]
    output: Int32


@dataclass(slots=True)
class Matched:
    """A slot's place in its grammar. `lost`: its output is not in the language, a defect that ends the request."""

    matcher: GrammarMatcher
    accept: Callable[[int], bool]
    stop_token_ids: frozenset[int]
    grammar: Grammar
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Filled:
    """What was found out for rows of one step: `masked` (k,) int32 are those whose masks are the first k of `bits`."""

    rows: list[int]
    slots: list[int]
    matchers: list[GrammarMatcher]
    masked: Int32
    visible: Int32  # (k, words)


class Matchers:
    """For slots that have a grammar. `bits` (rows, words) int32 holds masks: bit t % 32 of word t // 32 is set if token t
    may come. Not thread-safe."""

    def __init__(
        self,
        num_slots: int,
        vocab_size: int,
        *,
        num_threads: int,
        stream: Stream | None = None,
        max_rows: int | None = None,
    ) -> None:
        """`num_threads` fill masks together. `stream` is the one that masks are sent through, up to `max_rows` in a
        step (None: one for each slot)."""
        self._num_words = -(-vocab_size // 32)
        self._vocab_size = vocab_size
        self._num_threads = num_threads
        shape = (max_rows or num_slots, self._num_words)
        self.bits = (stream or HostStream()).host_zeros(shape, torch.int32)
        self._slots: dict[int, Matched] = {}
        self._visible = lazy_zeros((num_slots, self._num_words), torch.int32).numpy()
        self._last: Filled | None = None  # None when slots have changed since
        self._batch: BatchGrammarMatcher | None = None

    def start(self, start: Start) -> None:
        """Another request has the slot; its grammar takes in the output that there is."""
        self.drop(start.slot)
        if start.grammar is None:
            return
        from xgrammar import GrammarMatcher

        stops = [token for token in start.stop_token_ids if 0 <= token < self._vocab_size]
        matcher = GrammarMatcher(start.grammar.compiled, override_stop_tokens=stops or None)
        matched = Matched(matcher, matcher.accept_token, frozenset(stops), start.grammar)
        if not self._replay(matcher, start) or matcher.is_terminated():
            log.error("the output given for a request is not the beginning of one in its grammar's language")
            matched.lost = True
        self._slots[start.slot] = matched
        visible = self._visible[start.slot]
        visible[:] = start.grammar.visible
        for token in stops:
            visible.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)

    def _replay(self, matcher: GrammarMatcher, start: Start) -> bool:
        """Whether the grammar takes the output that there is."""
        assert start.grammar is not None
        for token in start.output.tolist():
            if start.grammar.counts_tokens:
                matcher.fill_next_token_bitmask(self.bits, start.slot)
            if not matcher.accept_token(token):
                return False
        return True

    def accept(self, slots: list[int], tokens: list[int]) -> None:
        """`slots` drew `tokens`. Those whose requests have ended meanwhile are passed over."""
        for slot, token in zip(slots, tokens, strict=True):
            matched = self._slots.get(slot)
            if matched is None:
                continue
            # One by one: xgrammar's call for a batch takes longer.
            if not matched.accept(token):
                log.error("token %d is not in the language of its request's grammar", token)
                matched.lost = True
                self._last = None
            elif token in matched.stop_token_ids:
                self.drop(slot)  # it has ended; a row planned ahead may still name the slot

    def admit(self, slot: int, draft: list[int], most: int) -> tuple[list[int], int]:
        """At most `most` tokens that may come next in the slot, and how many of them are the beginning of `draft`.

        Behind what the grammar takes of a draft comes what it leaves no choice about. A token that ends the output is
        not drafted, nor one that is no text (of ids without any xgrammar would write a line each), and nothing where
        tokens are counted: a place there cannot be gone back to.
        """
        matched = self._slots.get(slot)
        if matched is None or matched.lost or matched.grammar.counts_tokens:
            return [], 0
        taken: list[int] = []
        visible = self._visible[slot].view(np.uint32)
        for token in draft[:most]:
            if token in matched.stop_token_ids:
                break
            if not visible[token // 32] >> np.uint32(token % 32) & 1 or not matched.accept(token):
                break
            taken.append(token)
        of_draft = len(taken)
        if of_draft < most and not matched.matcher.is_terminated():
            text = matched.matcher.find_jump_forward_string().encode()
            for token in matched.grammar.spelling.tokens(text, most - of_draft):
                if not matched.accept(token):
                    break
                taken.append(token)
        if taken:
            matched.matcher.rollback(len(taken))
        return taken, of_draft

    def drop(self, slot: int) -> None:
        """The slot's output is complete, or cannot go on."""
        self._slots.pop(slot, None)
        self._last = None

    def fill_drafted(
        self, rows: list[int], slots: list[int], following: list[int]
    ) -> tuple[Int32, list[Ended]]:
        """As `fill`, where a slot has several rows beside each other: a row's mask is for after the drafts that follow
        the rows before it. `following` are these drafts, -1 for the last row of a slot.

        A row that cannot go on counts only if all drafts before it are right, so only a slot's first one is dropped
        here. What would come after it has no mask.
        """
        masked: list[int] = []
        ended: list[Ended] = []
        self._last = None
        at = 0
        while at < len(rows):
            end = at + 1
            while following[end - 1] >= 0:
                end += 1
            matched = self._slots.get(slots[at])
            if matched is not None and matched.lost:
                ended.append((rows[at], "error"))
                self.drop(slots[at])
            elif matched is not None:
                self._fill_run(matched, rows[at:end], slots[at], following[at:end], masked, ended)
            at = end
        return np.array(masked, np.int32), ended

    def _fill_run(
        self,
        matched: Matched,
        rows: list[int],
        slot: int,
        following: list[int],
        masked: list[int],
        ended: list[Ended],
    ) -> None:
        """The masks of one slot's rows."""
        accepted = 0
        for row, draft in zip(rows, following, strict=True):
            index = len(masked)
            matched.matcher.fill_next_token_bitmask(self.bits, index)
            bits = self.bits[index].numpy()
            bits &= self._visible[slot]
            masked.append(row)
            if not bits.any():
                reason = self._last_resort(matched, index)
                if reason is not None:
                    ended.append((row, reason))
                    break
            if draft >= 0:
                taken = matched.accept(draft)
                assert taken, "a draft is admitted before it is verified"
                accepted += 1
        if accepted:
            matched.matcher.rollback(accepted)
        elif ended and ended[-1][0] == rows[0]:
            self.drop(slot)

    def fill(self, rows: list[int], slots: list[int]) -> tuple[Int32, list[Ended]]:
        """Fill `bits` for the rows of a step and their slots: (k,) int32 rows whose masks are the first k, in order, and
        the rows that cannot go on. Neither has the rows of requests that have ended."""
        ended: list[Ended] = []
        last = self._last
        if last is None or last.slots != slots or last.rows != rows:
            last = self._look_up(rows, slots, ended)
        if last.matchers:
            self._batches.batch_fill_next_token_bitmask(last.matchers, self.bits)
            bits = self.bits[: last.masked.size].numpy()
            bits &= last.visible
            left = np.bitwise_or.reduce(bits, axis=1)
            if not left.all():
                ended += self._take_what_is_left(last, np.flatnonzero(left == 0).tolist())
        return last.masked, ended

    def _look_up(self, rows: list[int], slots: list[int], ended: list[Ended]) -> Filled:
        live = []
        for row, slot in zip(rows, slots, strict=True):
            matched = self._slots.get(slot)
            if matched is None:
                continue
            if matched.lost:
                ended.append((row, "error"))
                self.drop(slot)
            else:
                live.append((row, slot, matched.matcher))
        self._last = Filled(
            rows,
            slots,
            [matcher for _, _, matcher in live],
            np.array([row for row, _, _ in live], np.int32),
            self._visible[[slot for _, slot, _ in live]],
        )
        return self._last

    def _take_what_is_left(self, filled: Filled, empty: list[int]) -> list[Ended]:
        """Where nothing that is text may come, a special token that the grammar does not name may be all that it takes.
        If not, or if the output is complete and its request has no stop id to say so, it ends."""
        ended: list[Ended] = []
        for index in empty:
            row = int(filled.masked[index])
            slot = filled.slots[filled.rows.index(row)]
            reason = self._last_resort(self._slots[slot], index)
            if reason is not None:
                ended.append((row, reason))
                self.drop(slot)
        return ended

    def _last_resort(self, matched: Matched, index: int) -> FinishReason | None:
        """No text may come: mask `index` has what else the grammar takes. If that is nothing, or there is no stop id to
        end a complete output with, it ends for this reason, and the mask forbids nothing."""
        matched.matcher.fill_next_token_bitmask(self.bits, index)
        complete = not matched.stop_token_ids and matched.matcher.is_completed()
        if not complete and self.bits[index].any():
            return None
        self.bits[index] = -1
        return "stop" if complete else "error"

    @property
    def _batches(self) -> BatchGrammarMatcher:
        if self._batch is None:
            from xgrammar import BatchGrammarMatcher

            self._batch = BatchGrammarMatcher(max_threads=self._num_threads)
        return self._batch
