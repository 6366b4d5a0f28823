"""Texts and pairs become the tokens, types and cuts that transformers makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from penstock.server.text.tokenizer import Tokenizer
from tiny_encoders import WORDS, write_tokenizer
from transformers import PreTrainedTokenizerFast

TEXTS = ["the a of", "", " ".join(WORDS[:23]), " ".join(WORDS[20:31]), "said unknownword thing"]
PAIRS = [(first, second) for first in TEXTS for second in TEXTS]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def tokenizers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    path: Path = tmp_path_factory.mktemp(request.param)
    write_tokenizer(path, roberta=request.param == "roberta")
    return Tokenizer.load(path), PreTrainedTokenizerFast.from_pretrained(path)


@pytest.mark.parametrize("limit", [None, 4, 7, 8, 15, 16, 30])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pairs_are_cut_longest_first(
    tokenizers: tuple[Tokenizer, PreTrainedTokenizerFast], limit: int | None, side: str
) -> None:
    ours, theirs = tokenizers
    theirs.truncation_side = side
    for pair, encoded in zip(PAIRS, ours.encode_inputs(PAIRS, limit=limit, cut=side), strict=True):
        # As a batch: alone, transformers takes an empty second text for none.
        expected = theirs([pair], truncation=limit is not None, max_length=limit)
        assert encoded.tokens.tolist() == expected["input_ids"][0], (pair, limit)
        types = list(encoded.token_types) or [0] * len(encoded.tokens)
        assert types == expected.get("token_type_ids", [[0] * len(types)])[0]


@pytest.mark.parametrize("limit", [None, 2, 3, 10])
@pytest.mark.parametrize("special", [True, False])
def test_texts_keep_their_special_tokens_when_cut(
    tokenizers: tuple[Tokenizer, PreTrainedTokenizerFast], limit: int | None, special: bool
) -> None:
    ours, theirs = tokenizers
    theirs.truncation_side = "right"
    for text, encoded in zip(
        TEXTS, ours.encode_inputs(TEXTS, add_special_tokens=special, limit=limit), strict=True
    ):
        expected = theirs(text, add_special_tokens=special, truncation=limit is not None, max_length=limit)
        assert encoded.tokens.tolist() == expected["input_ids"]
        assert encoded.token_types == b""


def test_a_limit_below_the_special_tokens_is_told(
    tokenizers: tuple[Tokenizer, PreTrainedTokenizerFast],
) -> None:
    with pytest.raises(ValueError, match="1 tokens have no room for the 2 special ones"):
        tokenizers[0].encode_inputs(["the a of"], limit=1)


def test_the_second_part_has_a_limit_of_its_own(
    tokenizers: tuple[Tokenizer, PreTrainedTokenizerFast],
) -> None:
    ours, theirs = tokenizers
    long = " ".join(WORDS[:30])
    (encoded,) = ours.encode_inputs([("the a of", long)], second_limit=4)
    assert encoded.tokens.tolist() == theirs("the a of", " ".join(WORDS[:4]))["input_ids"]
