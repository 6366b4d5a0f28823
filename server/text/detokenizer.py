"""Tokens to text, a few at a time: what has been emitted never changes and never ends in half a character.

The concatenated pieces equal `decode(prompt + output)` without its `decode(prompt)` part. Byte-level BPE and
SentencePiece-style vocabularies are decoded from a table of token bytes; any other decoder through a sliding window.
"""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec
from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
WINDOW_TOKENS = 8
NOTHING: frozenset[int] = frozenset()


class Detokenizer(Protocol):
    """One sequence's state."""

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete."""

    def flush(self) -> str:
        """What was held back as an incomplete character, when no more tokens come."""


def byte_of_char() -> dict[str, int]:
    """The printable stand-in of each byte in byte-level vocabularies (GPT-2's table), inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(256 + offset): byte for offset, byte in enumerate(others)})
    return table


class ByteTable(dict[int, bytes]):
    """Token id -> the bytes it stands for, in a byte-level vocabulary; filled as tokens are met."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]) -> None:
        super().__init__((token, b"") for token in hidden)
        self._tokenizer = tokenizer
        self._bytes = byte_of_char()

    def __missing__(self, token: int) -> bytes:
        name: str | None = self._tokenizer.id_to_token(token)
        if name is None:
            data = b""
        else:
            try:
                data = bytes([self._bytes[char] for char in name])
            except KeyError:  # an added token with characters outside the byte alphabet stands for itself
                data = name.encode()
        self[token] = data
        return data


class ByteLevelDetokenizer:
    """Byte-level BPE: bytes are concatenated and decoded as UTF-8, what is not UTF-8 becomes U+FFFD."""

    __slots__ = ("_pending", "_table")

    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._pending = b""

    def push(self, tokens: Sequence[int]) -> str:
        if len(tokens) == 1:
            data = self._pending + self._table[tokens[0]]
        else:
            data = self._pending + b"".join(map(self._table.__getitem__, tokens))
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text

    def flush(self) -> str:
        data, self._pending = self._pending, b""
        return codecs.utf_8_decode(data, "replace", True)[0]


Piece: TypeAlias = str | int  # text, or one byte of a character that has no token of its own


class PieceTable(dict[int, Piece]):
    """Token id -> its text, or the byte that a `<0xNN>` token stands for; filled as tokens are met."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], *, byte_fallback: bool) -> None:
        super().__init__((token, "") for token in hidden)
        self._tokenizer = tokenizer
        self._byte_fallback = byte_fallback

    def __missing__(self, token: int) -> Piece:
        name: str | None = self._tokenizer.id_to_token(token)
        piece: Piece
        if name is None:
            piece = ""
        elif self._byte_fallback and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            piece = int(name[3:5], 16)
        else:
            piece = name.replace(SPACE_MARK, " ")
        self[token] = piece
        return piece


class PieceDetokenizer:
    """SentencePiece-style: a space mark inside tokens, bytes as tokens, a leading space that belongs to no text.

    A run of byte tokens that is not UTF-8 becomes one U+FFFD a byte, as in the `ByteFallback` decoder; but characters
    of the run that were complete have been emitted by then and stay.
    """

    __slots__ = ("_lstrip", "_run", "_table")

    def __init__(self, table: PieceTable, lstrip: Callable[[str], str] | None) -> None:
        self._table = table
        self._lstrip = lstrip  # applied to the first text there is; None once that has come
        self._run = b""

    def push(self, tokens: Sequence[int]) -> str:
        text = ""
        for token in tokens:
            piece = self._table[token]
            if isinstance(piece, int):
                self._run += bytes((piece,))
                continue
            if not piece:
                continue
            if self._run:
                text += self._end_run()
            if self._lstrip is not None:
                piece = self._lstrip(piece)
                self._lstrip = None
            text += piece
        if self._run:
            text += self._complete_characters()
        return text

    def flush(self) -> str:
        return self._end_run() if self._run else ""

    def _complete_characters(self) -> str:
        try:
            text, used = codecs.utf_8_decode(self._run, "strict", False)
        except UnicodeDecodeError:
            return self._end_run()
        self._run = self._run[used:]
        if text and self._lstrip is not None:
            text = self._lstrip(text)
            self._lstrip = None
        return text

    def _end_run(self) -> str:
        """The run so far is over: what is no UTF-8 becomes one replacement a byte."""
        run, self._run = self._run, b""
        self._lstrip = None
        try:
            return run.decode()
        except UnicodeDecodeError:
            return REPLACEMENT * len(run)


class WindowDetokenizer:
    """Any decoder: decodes the last few tokens with and without the new ones, and emits the difference."""

    __slots__ = ("_decode", "_done", "_shown", "_tokens")

    def __init__(self, decode: Callable[[list[int]], str], context: list[int]) -> None:
        self._decode = decode
        self._tokens = context
        self._done = 0  # tokens before this one are context only
        self._shown = len(context)  # tokens before this one have been emitted

    def push(self, tokens: Sequence[int]) -> str:
        self._tokens.extend(tokens)
        before = self._decode(self._tokens[self._done : self._shown])
        text = self._decode(self._tokens[self._done :])
        if len(text) <= len(before) or text.endswith(REPLACEMENT):
            return ""
        self._done = max(self._done, self._shown - WINDOW_TOKENS)
        self._shown = len(self._tokens)
        return text[len(before) :]

    def flush(self) -> str:
        before = self._decode(self._tokens[self._done : self._shown])
        text = self._decode(self._tokens[self._done :])
        self._shown = len(self._tokens)
        return text[len(before) :]


def strip_one_space(text: str) -> str:
    return text.removeprefix(" ")


def strip_spaces(text: str) -> str:
    return text.replace(" ", "")


class Detokenization:
    """How one tokenizer's tokens become text: chosen once from its decoder, then one detokenizer a sequence."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, content in added.items() if content.special)
        self._lstrip: Callable[[str], str] | None = None
        self._kind = self._choose(decoder_description(tokenizer))
        self._byte_tables: dict[frozenset[int], ByteTable] = {}
        self._piece_tables: dict[frozenset[int], PieceTable] = {}

    def _hidden(self, skip_special_tokens: bool, visible: frozenset[str]) -> frozenset[int]:
        """The tokens that show no text; few different sets ever come up."""
        if not skip_special_tokens:
            return NOTHING
        if not visible:
            return self._special
        return self._special - {self._tokenizer.token_to_id(name) for name in visible}

    def _byte_table(self, hidden: frozenset[int]) -> ByteTable:
        table = self._byte_tables.get(hidden)
        if table is None:
            table = self._byte_tables[hidden] = ByteTable(self._tokenizer, hidden)
        return table

    def _piece_table(self, hidden: frozenset[int]) -> PieceTable:
        table = self._piece_tables.get(hidden)
        if table is None:
            table = PieceTable(self._tokenizer, hidden, byte_fallback=self._kind == "pieces+bytes")
            self._piece_tables[hidden] = table
        return table

    def _choose(self, decoder: dict[str, Any] | None) -> str:
        """`bytes`, `pieces`, `pieces+bytes` or `window`; also what happens to a leading space."""
        match decoder:
            case {"type": "ByteLevel"}:
                return "bytes"
            case {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}:
                return "bytes"
            case {"type": "Metaspace", "replacement": str(mark), **options} if mark == SPACE_MARK:
                self._lstrip = None if options.get("prepend_scheme", "always") == "never" else strip_spaces
                return "pieces"
            case {"type": "Sequence", "decoders": [*steps]}:
                return self._choose_sequence(steps)
        return "window"

    def _choose_sequence(self, steps: list[dict[str, Any]]) -> str:
        match steps:
            case [
                {"type": "Replace", "pattern": {"String": str(mark)}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *rest,
            ] if mark == SPACE_MARK:
                if not rest:
                    return "pieces+bytes"
                if rest == [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]:
                    self._lstrip = strip_one_space
                    return "pieces+bytes"
        return "window"

    def start(
        self, prompt: array[int], *, skip_special_tokens: bool, visible_special: frozenset[str] = frozenset()
    ) -> Detokenizer:
        """A detokenizer for what follows `prompt`; the special tokens in `visible_special` are shown anyway."""
        hidden = self._hidden(skip_special_tokens, visible_special)
        if self._kind == "bytes":
            return ByteLevelDetokenizer(self._byte_table(hidden))
        if self._kind == "window":
            return WindowDetokenizer(
                lambda tokens: self._tokenizer.decode(
                    [token for token in tokens if token not in hidden], skip_special_tokens=False
                ),
                prompt[-WINDOW_TOKENS:].tolist(),
            )
        table = self._piece_table(hidden)
        text_before = any(table[token] != "" for token in reversed(prompt))
        return PieceDetokenizer(table, None if text_before else self._lstrip)

    def is_special(self, token: int) -> bool:
        return token in self._special

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        """All at once."""
        detokenizer = self.start(array("i"), skip_special_tokens=skip_special_tokens)
        return detokenizer.push(tokens) + detokenizer.flush()

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for, special tokens by their name."""
        if self._kind == "bytes":
            return self._byte_table(NOTHING)[token]
        if self._kind == "window":
            text: str = self._tokenizer.decode([token], skip_special_tokens=False)
            return text.encode()
        piece = self._piece_table(NOTHING)[token]
        return bytes((piece,)) if isinstance(piece, int) else piece.encode()


def decoder_description(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The decoder's part of tokenizer.json."""
    if tokenizer.decoder is None:
        return None
    description: dict[str, Any] = msgspec.json.decode(tokenizer.decoder.__getstate__())
    return description
