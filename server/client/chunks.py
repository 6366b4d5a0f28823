"""What one chunk of a streamed OpenAI answer says, as far as Penstock's own clients need to know.

The Structs name only the fields that are read, so decoding a chunk costs well under a microsecond; anything else a
server sends is skipped.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

DONE = b"[DONE]"


class Delta(Struct, gc=False):
    """`choices[0].delta` of a chat chunk; servers spell a model's reasoning in either of two ways."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(Struct, gc=False):
    """One choice of a chunk: `text` in /v1/completions, `delta` in /v1/chat/completions."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None

    @property
    def says_something(self) -> bool:
        """Whether the chunk carries generated tokens; the role chunk and the finish chunk do not."""
        if self.text:
            return True
        delta = self.delta
        return delta is not None and bool(
            delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls
        )


class PromptDetails(Struct, gc=False):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int | None = None


class Usage(Struct, gc=False):
    """`usage`, in tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        details = self.prompt_tokens_details
        return None if details is None else details.cached_tokens


class Chunk(Struct, gc=False):
    """One event of the stream; `error` is what a server sends when it fails in mid-stream."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


decode_chunk = msgspec.json.Decoder(Chunk).decode


def error_text(body: bytes | Any, limit: int = 300) -> str:
    """The message inside an error answer, in whichever of the usual shapes it comes, on one line.

    `body`: raw bytes of the answer, or an already decoded `error` value.
    """
    value = body
    if isinstance(body, bytes):
        try:
            value = msgspec.json.decode(body)
        except msgspec.DecodeError:
            value = body.decode(errors="replace")
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(key):
            value = value[key]
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[:limit] + "…"
