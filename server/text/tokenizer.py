"""Text to tokens and back for the served model, and the special tokens its files declare."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence as Ordered
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from .detokenizer import Detokenization

# Tokenising this much text takes a few milliseconds: longer than the event loop should stand still.
INLINE_CHARS = 4096
CACHED_WORDS = 4096
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerError(Exception):
    """The tokenizer's files cannot be used; the message names the file."""


class Encoded(NamedTuple):
    """An input to be read whole: int32 token ids, and a uint8 type for each (empty: all 0)."""

    tokens: array[int]
    token_types: bytes


class Tokenizer:
    """The model's tokenizer. `special` maps names such as `bos_token` to texts, as chat templates expect them."""

    def __init__(self, rust: RustTokenizer, config: dict[str, Any] | None = None) -> None:
        rust.no_truncation()
        rust.no_padding()
        self._rust = rust
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenize")
        self.config = config or {}
        self.special = special_tokens(self.config)
        self.detokenization = Detokenization(rust)
        names = self.config.get("model_input_names")
        self._has_types = not isinstance(names, list) or "token_type_ids" in names
        self.vocab_size: int = rust.get_vocab_size(with_added_tokens=True)
        self.special_ids: dict[str, int] = {
            added.content: token for token, added in rust.get_added_tokens_decoder().items() if added.special
        }
        self.word_sequences = lru_cache(CACHED_WORDS)(self._word_sequences)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """From tokenizer.json and tokenizer_config.json. Raises `TokenizerError`."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"{path} does not exist: the model needs a tokenizer.json "
                "(convert other formats once with transformers, or give --tokenizer)"
            )
        try:
            rust = RustTokenizer.from_file(str(path))
        except Exception as error:
            raise TokenizerError(f"{path} cannot be read: {error}") from None
        return cls(rust, read_json(directory / "tokenizer_config.json"))

    @property
    def eos_token_id(self) -> int | None:
        eos = self.special.get("eos_token")
        return None if eos is None else self._rust.token_to_id(eos)

    def encode(self, text: str, *, add_special_tokens: bool) -> array[int]:
        """Token ids (int32). The long batch call is the one that does not track offsets and frees the GIL."""
        (encoding,) = self._rust.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return array("i", encoding.ids)

    async def encode_async(self, text: str, *, add_special_tokens: bool) -> array[int]:
        """Like `encode`, on another thread if the text is long."""
        if len(text) <= INLINE_CHARS:
            return self.encode(text, add_special_tokens=add_special_tokens)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, lambda: self.encode(text, add_special_tokens=add_special_tokens)
        )

    def encode_inputs(
        self,
        inputs: Ordered[str | tuple[str, str]],
        *,
        add_special_tokens: bool = True,
        limit: int | None = None,
        cut: Literal["left", "right"] = "right",
        second_limit: int | None = None,
    ) -> list[Encoded]:
        """Texts, and pairs of texts, to be read whole; at most `limit` tokens each, special ones kept.

        `cut` is the side on which a text loses tokens; of a pair the longer part does first. `second_limit` bounds the
        second part of pairs (tokens) in any case. Raises ValueError if the special tokens alone are more than `limit`.
        """
        encodings = self._rust.encode_batch_fast(inputs, add_special_tokens=add_special_tokens)
        found = []
        for given, encoding in zip(inputs, encodings, strict=True):
            pair = isinstance(given, tuple)
            if (limit is not None and len(encoding) > limit) or (pair and second_limit is not None):
                encoding = self._shortened(given, add_special_tokens, limit, cut, second_limit)
            types = bytes(encoding.type_ids) if self._has_types and any(encoding.type_ids) else b""
            found.append(Encoded(array("i", encoding.ids), types))
        return found

    async def encode_inputs_async(
        self, inputs: Ordered[str | tuple[str, str]], **options: Any
    ) -> list[Encoded]:
        """Like `encode_inputs`, on another thread if there is much text."""
        if sum(len(part) for given in inputs for part in parts(given)) <= INLINE_CHARS:
            return self.encode_inputs(inputs, **options)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: self.encode_inputs(inputs, **options))

    def _shortened(
        self,
        given: str | tuple[str, str],
        add_special_tokens: bool,
        limit: int | None,
        cut: Literal["left", "right"],
        second_limit: int | None,
    ) -> Encoding:
        encodings = self._rust.encode_batch_fast([*parts(given)], add_special_tokens=False)
        lengths = [len(encoding) for encoding in encodings]
        if second_limit is not None:
            lengths[1:] = [min(length, second_limit) for length in lengths[1:]]
        if limit is not None:
            special = self._rust.num_special_tokens_to_add(len(lengths) == 2) if add_special_tokens else 0
            if limit < special:
                raise ValueError(f"{limit} tokens have no room for the {special} special ones")
            lengths = fitted(lengths, limit - special)
        for encoding, length in zip(encodings, lengths, strict=True):
            encoding.truncate(length, direction=cut)
        second = encodings[1] if len(encodings) == 2 else None
        return self._rust.post_process(encodings[0], second, add_special_tokens)

    def decode(self, tokens: list[int], *, skip_special_tokens: bool = False) -> str:
        return self.detokenization.decode(tokens, skip_special_tokens=skip_special_tokens)

    def _word_sequences(self, word: str) -> tuple[tuple[int, ...], ...]:
        """The token sequences that spell `word`, at the beginning of a text and behind a space; () if none does."""
        bare = word.lstrip()
        found = {
            tuple(self.encode(text, add_special_tokens=False))
            for text in ((bare, " " + bare) if bare else (word,))
        }
        return tuple(sorted(sequence for sequence in found if sequence))

    def token_text(self, token: int) -> str:
        """The text of one token alone; bytes that are no whole character become U+FFFD."""
        return self.detokenization.token_bytes(token).decode(errors="replace")

    def is_special(self, token: int) -> bool:
        """Is it one of those that show no text?"""
        return self.detokenization.is_special(token)

    def token_name(self, token: int) -> str:
        """The token as the vocabulary spells it."""
        return self._rust.id_to_token(token) or ""

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def parts(given: str | tuple[str, str]) -> tuple[str, ...]:
    return given if isinstance(given, tuple) else (given,)


def fitted(lengths: list[int], limit: int) -> list[int]:
    """One or two lengths cut to `limit` in all: the longer one gives way, as transformers' `longest_first` has it."""
    if sum(lengths) <= limit:
        return lengths
    if len(lengths) == 1:
        return [limit]
    shorter = min(*lengths, limit // 2)
    longer = limit - shorter
    return [shorter, longer] if lengths[0] <= lengths[1] else [longer, shorter]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} if there is no such file. Raises `TokenizerError` naming a file that is no JSON object."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from None


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Name -> text; tokenizer_config.json writes them as text or as an object with `content`."""
    found = {}
    for name in SPECIAL_NAMES:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found
