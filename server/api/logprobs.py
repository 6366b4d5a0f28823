"""Log probabilities in the two shapes of the API: chat's list of tokens, and the parallel lists of completions."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

from ..requests.sequence import TokenLogprob
from ..text.detokenizer import Detokenizer
from ..text.tokenizer import Tokenizer

FLOOR = -9999.0  # JSON has no -inf


def finite(logprob: float) -> float:
    return logprob if logprob > FLOOR else FLOOR  # NaN too


def chat_entries(
    tokenizer: Tokenizer, entries: list[TokenLogprob], *, as_ids: bool = False
) -> list[dict[str, Any]]:
    """`choices[i].logprobs.content` of chat: each token with its bytes and the best alternatives."""
    described = []
    for entry in entries:
        top = [describe(tokenizer, token, logprob, as_ids) for token, logprob in entry.top]
        described.append({**describe(tokenizer, entry.token_id, entry.logprob, as_ids), "top_logprobs": top})
    return described


def describe(tokenizer: Tokenizer, token: int, logprob: float, as_ids: bool) -> dict[str, Any]:
    data = tokenizer.detokenization.token_bytes(token)
    name = id_name(token) if as_ids else data.decode(errors="replace")
    return {"token": name, "logprob": finite(logprob), "bytes": list(data)}


def id_name(token: int) -> str:
    """A token as `return_tokens_as_token_ids` names it: no two of them look alike."""
    return f"token_id:{token}"


def prompt_entries(tokenizer: Tokenizer, entries: list[TokenLogprob], k: int) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: null for the first token, then at each position the token and the `k` best."""
    described: list[dict[str, Any] | None] = [None]
    for entry in entries:
        ranked = [(token, logprob, rank) for rank, (token, logprob) in enumerate(entry.top[:k], start=1)]
        described.append(
            {
                str(token): {
                    "logprob": finite(logprob),
                    "rank": rank,
                    "decoded_token": tokenizer.token_text(token),
                }
                for token, logprob, rank in [(entry.token_id, entry.logprob, entry.rank), *ranked]
            }
        )
    return described


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
        as_ids: bool = False,
    ) -> None:
        self._name = id_name if as_ids else partial(token_key, tokenizer)
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
        name = self._name
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(self._detokenizer.push([entry.token_id]))
        return {
            "text_offset": offsets,
            "token_logprobs": [finite(entry.logprob) for entry in entries],
            "tokens": [name(entry.token_id) for entry in entries],
            "top_logprobs": [
                {
                    name(token): finite(logprob)
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
