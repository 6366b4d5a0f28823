"""Log probabilities in the two shapes of the API: chat's list of tokens, and the parallel lists of completions."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from ..requests.sequence import TokenLogprob
from ..text.detokenizer import Detokenizer
from ..text.tokenizer import Tokenizer

FLOOR = -9999.0  # JSON has no -inf


def finite(logprob: float) -> float:
    return logprob if logprob > FLOOR else FLOOR  # NaN too


def chat_entries(tokenizer: Tokenizer, entries: list[TokenLogprob]) -> list[dict[str, Any]]:
    """`choices[i].logprobs.content` of chat: each token with its bytes and the best alternatives."""
    described = []
    for entry in entries:
        top = [describe(tokenizer, token, logprob) for token, logprob in entry.top]
        described.append({**describe(tokenizer, entry.token_id, entry.logprob), "top_logprobs": top})
    return described


def describe(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.detokenization.token_bytes(token)
    return {"token": data.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(data)}


def token_key(tokenizer: Tokenizer, token: int) -> str:
    """The token as text; one that is no whole character as `bytes:\\xNN…`, so that two of them never look alike."""
    data = tokenizer.detokenization.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class CompletionLogprobs:
    """Makes `choices[i].logprobs` of /v1/completions, piece by piece; offsets count characters of the whole text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        start: Callable[[array[int]], Detokenizer],
        prompt: array[int],
        *,
        echo: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._detokenizer = start(array("i") if echo else prompt)
        self._offset = 0

    def prompt(self, entries: list[TokenLogprob]) -> dict[str, Any]:
        """The whole prompt; its first token has no probability."""
        first = TokenLogprob(self._prompt[0], 0.0, 0, [])
        described = self.output([first, *entries])
        described["token_logprobs"][0] = None
        described["top_logprobs"][0] = None
        return described

    def output(self, entries: list[TokenLogprob]) -> dict[str, Any]:
        """Consecutive tokens, each at the offset where its text begins."""
        name = self._tokenizer
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(self._detokenizer.push([entry.token_id]))
        return {
            "text_offset": offsets,
            "token_logprobs": [finite(entry.logprob) for entry in entries],
            "tokens": [token_key(name, entry.token_id) for entry in entries],
            "top_logprobs": [
                {
                    token_key(name, token): finite(logprob)
                    for token, logprob in [*entry.top, (entry.token_id, entry.logprob)]
                }
                for entry in entries
            ],
        }


def joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """Several pieces as one."""
    whole: dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    for piece in pieces:
        for name, values in piece.items():
            whole[name] += values
    return whole
