"""TGI's answers: what a sequence produced, token by token, as one object or as events."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, TypeAlias

import msgspec

from ....scheduler.messages import FinishReason
from ...metrics.catalogue import Metrics
from ...requests.generation import ClientGone, Generation, GenerationFailed
from ...requests.link import EngineLink
from ...requests.sequence import Failure, Sequence, TokenLogprob
from ...text.tokenizer import Tokenizer
from ..errors import from_failure, tgi_error_body
from ..logprobs import finite
from ..streams import EventGeneration

Reason: TypeAlias = Literal["length", "eos_token", "stop_sequence"]
encode = msgspec.json.Encoder().encode


def tgi_reason(reason: FinishReason, stop_reason: int | str | None) -> Reason:
    if reason != "stop":
        return "length"
    return "stop_sequence" if isinstance(stop_reason, str) else "eos_token"


def drawn_with(sequence: Sequence) -> int | None:
    """The seed of a sequence that was drawn; the likeliest tokens need none."""
    return sequence.sampling.seed if sequence.sampling.temperature > 0 else None


class Tokens:
    """Describes tokens. `text` is what a token adds to the generated text: nothing, for a special one."""

    def __init__(self, tokenizer: Tokenizer, *, alternatives: bool) -> None:
        self._tokenizer = tokenizer
        self.alternatives = alternatives

    def describe(self, entry: TokenLogprob, text: str) -> dict[str, Any]:
        return {
            "id": entry.token_id,
            "text": text,
            "logprob": finite(entry.logprob),
            "special": self._tokenizer.is_special(entry.token_id),
        }

    def top(self, entry: TokenLogprob) -> list[dict[str, Any]]:
        """The likeliest tokens at a position, by their own texts."""
        named = [TokenLogprob(token, logprob, 0, []) for token, logprob in entry.top]
        return [self.describe(each, self._tokenizer.token_text(each.token_id)) for each in named]

    def prompt(self, tokens: list[int], entries: list[TokenLogprob]) -> list[dict[str, Any]]:
        """`prefill`: the prompt's tokens; the first has no probability."""
        logprobs = [None, *(finite(entry.logprob) for entry in entries)]
        return [
            {"id": token, "text": self._tokenizer.token_text(token), "logprob": logprob}
            for token, logprob in zip(tokens, logprobs, strict=False)
        ]


class Collected:
    """A sink that keeps everything; `tokens` pairs each token with the text that came with it."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self.texts: list[str] = []
        self.tokens: list[tuple[TokenLogprob, str]] = []
        self.prompt_entries: list[TokenLogprob] = []
        self.reason: Reason = "length"

    def prompt_logprobs(self, entries: list[TokenLogprob]) -> None:
        self.prompt_entries = entries

    def text(self, text: str, logprobs: list[TokenLogprob] | None) -> None:
        self.texts.append(text)
        if logprobs:
            *others, last = logprobs
            self.tokens += [(entry, "") for entry in others]
            self.tokens.append((last, text))
        elif text and self.tokens:  # held back until the end was known
            entry, before = self.tokens[-1]
            self.tokens[-1] = (entry, before + text)

    def finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        self.reason = tgi_reason(reason, stop_reason)
        self._generation.sequence_ended()

    def fail(self, failure: Failure) -> None:
        self._generation.sequence_failed(failure)


class TokenEvents(EventGeneration):
    """A stream of TGI's events; an error is the last of them."""

    def __init__(self, link: EngineLink, metrics: Metrics, *, keep_alive_s: float) -> None:
        super().__init__(link, metrics, 1, keep_alive_s=keep_alive_s)

    def on_stop(self, error: GenerationFailed | ClientGone | None) -> None:
        if isinstance(error, GenerationFailed) and self.started:
            self.events.push(b"data:" + tgi_error_body(from_failure(error.failure)) + b"\n\n")
            self.events.close()
        else:
            self.events.close(error)


class Streamed:
    """A sink that writes one event a token.

    The last token's event carries the end of the answer, and whether a token is the last is known when the step that
    brought it has been taken in: an event waits for that, or for the next token.
    """

    def __init__(self, generation: TokenEvents, tokens: Tokens, *, prefix: str) -> None:
        """`prefix` is what the generated text begins with."""
        self._generation = generation
        self._tokens = tokens
        self._loop = asyncio.get_running_loop()
        self._texts = [prefix]
        self._held: tuple[TokenLogprob, str] | None = None
        self._last: TokenLogprob | None = None
        self._index = 0

    def prompt_logprobs(self, entries: list[TokenLogprob]) -> None:
        raise AssertionError("a stream never asks for them")

    def text(self, text: str, logprobs: list[TokenLogprob] | None) -> None:
        self._texts.append(text)
        for entry in logprobs or ():
            self._emit()
            self._held, self._last = (entry, ""), entry
        if self._held is not None:
            entry, before = self._held
            self._held = (entry, before + text)
            self._loop.call_soon(self._emit)

    def finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        (sequence,) = self._generation.sequences
        if self._held is None and self._last is not None:
            self._held = (self._last, "")
        self._emit(
            generated_text="".join(self._texts),
            details={
                "finish_reason": tgi_reason(reason, stop_reason),
                "generated_tokens": len(sequence.output),
                "seed": drawn_with(sequence),
                "input_length": len(sequence.prompt),
            },
        )
        self._generation.sequence_ended()

    def fail(self, failure: Failure) -> None:
        self._held = None
        self._generation.sequence_failed(failure)

    def _emit(self, **ending: Any) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        self._index += 1
        event: dict[str, Any] = {"index": self._index, "token": self._tokens.describe(*held)}
        if self._tokens.alternatives:
            event["top_tokens"] = self._tokens.top(held[0])
        event.update({"generated_text": None, "details": None, **ending})
        self._generation.events.push(b"data:" + encode(event) + b"\n\n")
