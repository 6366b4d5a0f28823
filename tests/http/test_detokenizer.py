"""Text comes in pieces that never change, never end in half a character, and together are the whole."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.server.text.detokenizer import Detokenization
from penstock.server.text.tokenizer import Tokenizer
from tiny_tokenizer import byte_level, metaspace, pieces_with_bytes, wordpiece
from tokenizers import Tokenizer as RustTokenizer

KINDS: dict[str, Callable[[], RustTokenizer]] = {
    "byte-level": byte_level,
    "pieces, stripped": lambda: pieces_with_bytes(strip=True),
    "pieces": lambda: pieces_with_bytes(strip=False),
    "metaspace": metaspace,
    "wordpiece": wordpiece,
}
BYTES = range(3, 259)  # the byte tokens of `pieces_with_bytes`


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[RustTokenizer, Detokenization]]:
    return {kind: (rust, Detokenization(rust)) for kind, make in KINDS.items() for rust in [make()]}


def valid_runs(data: st.DataObject, vocabulary: int) -> list[int]:
    """Tokens of a byte-fallback vocabulary whose byte runs are whole characters, as models mostly make them."""
    part = st.one_of(
        st.sampled_from([[token] for token in range(vocabulary) if token not in BYTES]),
        st.characters(exclude_categories=["Cs"]).map(lambda char: [3 + byte for byte in char.encode()]),
    )
    return [token for tokens in data.draw(st.lists(part, max_size=20)) for token in tokens]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_pieces_together_equal_the_whole_decode_behind_any_prompt(
    made: dict[str, tuple[RustTokenizer, Detokenization]], kind: str, data: st.DataObject, skip: bool
) -> None:
    rust, detokenization = made[kind]
    vocabulary = rust.get_vocab_size()
    if kind.startswith("pieces"):
        tokens = valid_runs(data, vocabulary)
        prompt = valid_runs(data, vocabulary)
    else:
        any_tokens = st.lists(st.integers(0, vocabulary - 1), max_size=40)
        tokens = data.draw(any_tokens)
        prompt = data.draw(any_tokens) if kind != "byte-level" else []
    if kind == "wordpiece":
        prompt = prompt[-8:]  # its window is all that a sliding window knows of the prompt
    detokenizer = detokenization.start(array("i", prompt), skip_special_tokens=skip)
    pieces = []
    position = 0
    while position < len(tokens):
        size = data.draw(st.integers(1, 4))
        pieces.append(detokenizer.push(tokens[position : position + size]))
        position += size
    pieces.append(detokenizer.flush())
    before = rust.decode(prompt, skip_special_tokens=skip)
    whole = rust.decode(prompt + tokens, skip_special_tokens=skip)
    assert before + "".join(pieces) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_at_once_equals_the_library(
    made: dict[str, tuple[RustTokenizer, Detokenization]], kind: str
) -> None:
    rust, detokenization = made[kind]
    tokens = [
        token for token in range(rust.get_vocab_size()) if not (kind.startswith("pieces") and token in BYTES)
    ]
    for skip in (True, False):
        assert detokenization.decode(tokens, skip_special_tokens=skip) == rust.decode(
            tokens, skip_special_tokens=skip
        )


def test_half_a_character_waits_for_its_other_half() -> None:
    rust = byte_level()
    detokenizer = Detokenization(rust).start(array("i"), skip_special_tokens=True)
    tokens = [rust.token_to_id(char) for char in ("ð", "Ł", "ĺ", "Ģ")]  # the four bytes of 😀
    assert [detokenizer.push([token]) for token in tokens] == ["", "", "", "😀"]


def test_bytes_that_are_no_character_become_one_replacement_each_in_byte_fallback() -> None:
    rust = pieces_with_bytes(strip=True)
    tokens = [3 + 0xFF, 3 + 0xE2, rust.token_to_id("a"), 3 + 0x82]
    detokenizer = Detokenization(rust).start(array("i"), skip_special_tokens=True)
    text = "".join(detokenizer.push([token]) for token in tokens) + detokenizer.flush()
    assert text == rust.decode(tokens) == "��a�"


def test_a_leading_space_belongs_to_the_text_behind_a_prompt_and_to_nothing_at_the_start() -> None:
    rust = pieces_with_bytes(strip=True)
    world = rust.token_to_id("▁world")
    detokenization = Detokenization(rust)
    behind = detokenization.start(array("i", [rust.token_to_id("▁Hello")]), skip_special_tokens=True)
    at_start = detokenization.start(array("i", [rust.token_to_id("<s>")]), skip_special_tokens=True)
    assert behind.push([world]) == " world"
    assert at_start.push([world]) == "world"


def test_special_tokens_are_shown_only_on_request() -> None:
    tokenizer = Tokenizer(byte_level())
    tokens = tokenizer.encode("Hello<|im_end|>", add_special_tokens=False).tolist()
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "Hello"
    assert tokenizer.decode(tokens, skip_special_tokens=False) == "Hello<|im_end|>"


def test_ids_beyond_the_tokenizer_are_silent() -> None:
    for make in KINDS.values():
        detokenization = Detokenization(make())
        assert detokenization.decode([5000], skip_special_tokens=True) == ""
