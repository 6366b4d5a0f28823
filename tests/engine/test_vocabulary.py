"""The vocabulary is read from tokenizer.json as xgrammar reads it out of a transformers tokenizer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import penstock
import pytest
import tiny_tokenizer
import xgrammar
from penstock.engine.grammar.vocabulary import VocabularyError, token_vocabulary
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

DEMO = Path(penstock.__file__).parent / "server" / "demo_model" / "tokenizer.json"


def demo() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO))


def llama2() -> Tokenizer:
    tokenizer = tiny_tokenizer.pieces_with_bytes(strip=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def gpt2() -> Tokenizer:
    tokenizer = tiny_tokenizer.byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.add_tokens(["<tool_call>", "<｜tool▁begin｜>", "é", "two words"])
    return tokenizer


def saved(tokenizer: Tokenizer, path: Path) -> Path:
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("surplus", [0, 45, -3])
@pytest.mark.parametrize(
    "make",
    [
        demo,
        gpt2,
        llama2,
        tiny_tokenizer.byte_level,
        lambda: tiny_tokenizer.pieces_with_bytes(strip=False),
    ],
    ids=["demo", "gpt2", "llama2", "byte level", "byte fallback"],
)
def test_vocabulary_is_what_xgrammar_makes_of_a_transformers_tokenizer(
    make: Callable[[], Tokenizer], surplus: int, tmp_path: Path
) -> None:
    tokenizer = make()
    width = tokenizer.get_vocab_size(with_added_tokens=True) + surplus
    ours = token_vocabulary(saved(tokenizer, tmp_path), width)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    theirs = xgrammar.TokenizerInfo.from_huggingface(
        fast, vocab_size=width, stop_token_ids=ours.stop_token_ids or None
    )
    assert ours.decoded_vocab == theirs.decoded_vocab
    assert ours.vocab_size == theirs.vocab_size == width
    assert ours.vocab_type == theirs.vocab_type
    assert ours.add_prefix_space == theirs.add_prefix_space
    assert ours.special_token_ids == theirs.special_token_ids


def test_ids_without_text_are_special(tmp_path: Path) -> None:
    info = token_vocabulary(saved(tiny_tokenizer.byte_level(), tmp_path), 500)
    assert info.decoded_vocab[-1] == b""
    assert info.special_token_ids[-1] == 499


def test_unigram_pieces_decode_to_the_text_that_the_tokenizer_decodes(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer.metaspace()
    info = token_vocabulary(saved(tokenizer, tmp_path), tokenizer.get_vocab_size())
    assert info.decoded_vocab == [
        name.replace("▁", " ").encode() for name in map(tokenizer.id_to_token, range(info.vocab_size))
    ]


def test_tokenizers_whose_text_depends_on_neighbours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="WordPiece"):
        token_vocabulary(saved(tiny_tokenizer.wordpiece(), tmp_path), 10)


@pytest.mark.parametrize("content", [None, "{", '{"model": {"vocab": 3}}'])
def test_a_missing_or_broken_file_is_named(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(VocabularyError, match=str(tmp_path / "tokenizer.json")):
        token_vocabulary(tmp_path, 10)


def test_the_engine_is_ready_without_xgrammar() -> None:
    code = "import sys, penstock.engine.assemble; assert not {'xgrammar', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
