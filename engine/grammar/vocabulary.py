"""What the tokens of a model's vocabulary mean in text, read from its tokenizer.json alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from xgrammar import TokenizerInfo

Kind: TypeAlias = Literal["raw", "byte_fallback", "byte_level"]

# Where these decoders stand a token's text depends on its neighbours.
CONTEXTUAL = frozenset({"WordPiece", "BPEDecoder", "CTC"})
PARTS = ("decoders", "pretokenizers", "normalizers")  # what the steps of a `Sequence` are called


class VocabularyError(ValueError):
    """The tokenizer cannot be used for grammars; the message says why, and what would help."""


class AddedToken(Struct):
    id: int
    content: str
    special: bool = False


class Model(Struct):
    vocab: dict[str, int] | list[tuple[str, float]] = {}


class TokenizerFile(Struct):
    """The part of a tokenizer.json that says what tokens mean; merges are skipped unread."""

    model: Model
    added_tokens: list[AddedToken] = []
    normalizer: Any = None
    pre_tokenizer: Any = None
    decoder: Any = None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`tokens[id]` as the tokenizer spells them; empty where no text has that id.

    `kind` says how spelling and text are related: `byte_level` (one character a byte, as GPT-2), `byte_fallback`
    (`▁` is a space and `<0x0A>` a byte, as SentencePiece) or `raw` (the text itself). `special` are the tokens that
    are not part of the text, name -> id.
    """

    tokens: list[str]
    kind: Kind
    add_prefix_space: bool
    special: dict[str, int]

    def info(self) -> TokenizerInfo:
        """The same for xgrammar; imports it, which takes most of a second."""
        from xgrammar import TokenizerInfo, VocabType

        return TokenizerInfo(
            self.tokens,
            VocabType[self.kind.upper()],
            vocab_size=len(self.tokens),
            add_prefix_space=self.add_prefix_space,
        )


def token_vocabulary(tokenizer_dir: Path, vocab_size: int) -> TokenizerInfo:
    """xgrammar's view of the vocabulary, as wide as the model's logits. Raises `VocabularyError`."""
    return read_vocabulary(tokenizer_dir, vocab_size).info()


def read_vocabulary(tokenizer_dir: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary of tokenizer_dir/tokenizer.json, cut or filled up to `vocab_size`. Raises `VocabularyError`."""
    path = tokenizer_dir / "tokenizer.json"
    try:
        file = msgspec.json.decode(path.read_bytes(), type=TokenizerFile)
    except OSError as error:
        raise VocabularyError(
            f"{path} cannot be read ({error.strerror}): grammars need a tokenizer.json "
            "(convert other formats once with transformers, or give --tokenizer)"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VocabularyError(f"{path} cannot be read: {error}") from None
    kind, space = spelling(file.decoder)
    tokens = [""] * vocab_size
    for token, number in numbered(file.model.vocab):
        if number < vocab_size:
            tokens[number] = token.replace(space, " ") if space else token
    for added in file.added_tokens:
        if added.id < vocab_size:
            tokens[added.id] = added.content
    return Vocabulary(
        tokens,
        kind,
        adds_space(file, kind),
        {added.content: added.id for added in file.added_tokens if added.special and added.id < vocab_size},
    )


def numbered(vocab: dict[str, int] | list[tuple[str, float]]) -> Iterator[tuple[str, int]]:
    """(token, id) pairs; the pieces of a Unigram model come in the order of their ids."""
    if isinstance(vocab, dict):
        yield from vocab.items()
    else:
        for number, (token, _) in enumerate(vocab):
            yield token, number


def spelling(decoder: Any) -> tuple[Kind, str]:
    """How tokens are spelled, and which mark stands for a space where xgrammar does not know it (raw ones)."""
    found = {step["type"]: step for step in steps(decoder)}
    contextual = CONTEXTUAL & found.keys()
    if contextual:
        raise VocabularyError(
            f"the tokenizer's decoder is {', '.join(sorted(contextual))}, with which a token's text depends on its "
            "neighbours: grammars need a byte-level or SentencePiece tokenizer"
        )
    if "ByteLevel" in found:
        return "byte_level", ""
    if "ByteFallback" in found:
        return "byte_fallback", ""
    if "Metaspace" in found:
        return "raw", found["Metaspace"].get("replacement", "▁")
    replace = found.get("Replace", {})
    if replace.get("content") == " ":
        return "raw", replace.get("pattern", {}).get("String", "")
    return "raw", ""


def adds_space(file: TokenizerFile, kind: Kind) -> bool:
    """Does the tokenizer put a space before every text? Byte-level ones count as if they did not, as in xgrammar."""
    if kind == "byte_level":
        return False
    return any(
        step["type"] == "Prepend"
        or (
            step["type"] == "Metaspace"
            and (step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True))
        )
        for step in (*steps(file.normalizer), *steps(file.pre_tokenizer))
    )


def steps(node: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder in their order, `Sequence`s unfolded."""
    if not isinstance(node, dict) or "type" not in node:
        return
    if node["type"] == "Sequence":
        for name in PARTS:
            for part in node.get(name, ()):
                yield from steps(part)
    else:
        yield node
