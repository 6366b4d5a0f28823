"""Text to tokens and back for the served model, and the special tokens its files declare."""

from __future__ import annotations

import asyncio
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer as RustTokenizer

from .detokenizer import Detokenization

# Tokenising this much text takes a few milliseconds: longer than the event loop should stand still.
INLINE_CHARS = 4096
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerError(Exception):
    """The tokenizer's files cannot be used; the message names the file."""


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
        self.vocab_size: int = rust.get_vocab_size(with_added_tokens=True)

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

    def decode(self, tokens: list[int], *, skip_special_tokens: bool = False) -> str:
        return self.detokenization.decode(tokens, skip_special_tokens=skip_special_tokens)

    def token_text(self, token: int) -> str:
        """The text of one token alone; bytes that are no whole character become U+FFFD."""
        return self.detokenization.token_bytes(token).decode(errors="replace")

    def token_name(self, token: int) -> str:
        """The token as the vocabulary spells it."""
        return self._rust.id_to_token(token) or ""

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


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
