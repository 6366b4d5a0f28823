"""An answer as blocks, one after the other: thinking, text, tool calls. What Responses and Messages are both made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from ...scheduler.messages import FinishReason
from ..parsing.events import CallArguments, CallStart, Content, Event, Reasoning
from ..requests.generation import Generation
from ..requests.sequence import Failure, TokenLogprob

Kind: TypeAlias = Literal["reasoning", "text", "call"]
CUT_OFF: frozenset[FinishReason] = frozenset({"length", "abort", "error"})


class Block(Struct):
    """A part of an answer. The text of a call is the JSON of its arguments."""

    kind: Kind
    pieces: list[str] = []
    call_id: str = ""
    name: str = ""
    entries: list[TokenLogprob] = []
    complete: bool = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class BlockWriter(Protocol):
    """What streams the blocks of an answer. Only the last block is ever open."""

    def opened(self, index: int, block: Block) -> None:
        """Block number `index` begins, still empty."""

    def grew(self, index: int, block: Block, piece: str, entries: list[TokenLogprob]) -> None:
        """`piece` has been added to it, made from tokens with these log probabilities (if asked for)."""

    def closed(self, index: int, block: Block) -> None:
        """It ends; `complete` is false where the answer was cut off."""


class Blocks:
    """A `ChatSink` that keeps an answer's blocks and, if there is one, tells a `writer` of them as they come.

    White space alone makes no block: what stands between the thinking, the text and the calls is formatting. It is
    kept until something else of its block comes, and it is the answer if nothing else comes at all. Without `keep`
    nothing is shown: the answer has no blocks.
    """

    def __init__(self, generation: Generation, new_id: Callable[[], str], *, keep: bool = True) -> None:
        self._generation = generation
        self._keep = keep
        self._new_id = new_id
        self._space = ""
        self._space_kind: Kind = "text"
        self._entries: list[TokenLogprob] = []  # of tokens whose text has not come yet
        self._call = -1
        self.writer: BlockWriter | None = None
        self.blocks: list[Block] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None

    @property
    def has_calls(self) -> bool:
        return any(block.kind == "call" for block in self.blocks)

    # ------------------------------------------------------------------------------------------------ a ChatSink

    def prompt_logprobs(self, entries: list[TokenLogprob]) -> None:
        raise AssertionError("nobody asks for them here")

    def text(self, text: str, logprobs: list[TokenLogprob] | None) -> None:
        self.events([Content(text)], logprobs)

    def events(self, events: list[Event], logprobs: list[TokenLogprob] | None) -> None:
        if not self._keep:
            return
        self._entries += logprobs or ()
        for event in events:
            match event:
                case Content(text):
                    self._extend("text", text)
                case Reasoning(text):
                    self._extend("reasoning", text)
                case CallStart():
                    self._call = event.call
                    self._open(Block("call", call_id=event.id or self._new_id(), name=event.name))
                case CallArguments():
                    assert self.blocks[-1].kind == "call", "arguments belong to the call that began last"
                    assert event.call == self._call
                    self._grow(event.text)

    def finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        self.finish_reason = reason
        self.stop_reason = stop_reason
        if self._space and not self.blocks:
            space = self._space
            self._open(Block(self._space_kind))
            self._grow(space)
        self._close(complete=reason not in CUT_OFF)
        self._generation.sequence_ended()

    def fail(self, failure: Failure) -> None:
        self._generation.sequence_failed(failure)

    # ----------------------------------------------------------------------------------------------------- blocks

    def _extend(self, kind: Kind, text: str) -> None:
        """More thinking or more text: in the open block, or in a new one."""
        if not text:
            return
        if not self.blocks or self.blocks[-1].kind != kind:
            text = (self._space if self._space_kind == kind else "") + text
            if text.isspace():
                self._space, self._space_kind = text, kind
                return
            self._open(Block(kind))
        self._grow(text)

    def _open(self, block: Block) -> None:
        self._close(complete=True)
        self._space = ""
        self.blocks.append(block)
        if self.writer is not None:
            self.writer.opened(len(self.blocks) - 1, block)

    def _grow(self, piece: str) -> None:
        block = self.blocks[-1]
        entries, self._entries = self._entries, []
        if block.kind != "text":
            entries = []
        block.pieces.append(piece)
        block.entries += entries
        if self.writer is not None and piece:
            self.writer.grew(len(self.blocks) - 1, block, piece, entries)

    def _close(self, *, complete: bool) -> None:
        if self.blocks:
            block = self.blocks[-1]
            block.complete = complete
            if self.writer is not None:
                self.writer.closed(len(self.blocks) - 1, block)
