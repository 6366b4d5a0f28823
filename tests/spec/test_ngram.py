"""Drafts from texts, compiled and in Python: against a search through all suffixes, and what bounds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.kernels.cpu.library import load
from penstock.spec.ngram import BYTES_PER_TOKEN, NgramDrafter, NgramOptions, ngram_drafter

Make = Callable[..., NgramDrafter]
EVERYTHING = 10**9


@pytest.fixture(params=["compiled", "python"])
def make(request: pytest.FixtureRequest) -> Make:
    """A drafter with these options; `slots=` says how many slots it has."""
    compiled = request.param == "compiled"
    if compiled and load() is None:
        pytest.skip("no C++ compiler")
    return lambda slots=1, **options: NgramDrafter(slots, NgramOptions(**options), compiled=compiled)


def ints(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int32)


def drafts(drafter: NgramDrafter, limits: dict[int, int]) -> dict[int, list[int]]:
    """slot -> its draft, for slot -> the most tokens."""
    counts, tokens = drafter.propose(ints(list(limits)), ints(list(limits.values())))
    pieces = np.split(tokens, np.cumsum(counts)[:-1])
    return {slot: piece.tolist() for slot, piece in zip(limits, pieces, strict=True)}


def draft_of(drafter: NgramDrafter, most: int = 8, slot: int = 0) -> list[int]:
    return drafts(drafter, {slot: most})[slot]


def start(drafter: NgramDrafter, text: Sequence[int], slot: int = 0, **more: object) -> None:
    drafter.start(slot, ints(text), **more)  # type: ignore[arg-type]
    drafter.ingest(EVERYTHING)


def extend(drafter: NgramDrafter, tokens: Sequence[int], slot: int = 0, verified: int | None = None) -> None:
    looked_at = None if verified is None else ints([verified])
    drafter.extend(ints([slot]), ints([len(tokens)]), ints(tokens), looked_at)


def searched(text: list[int], least: int, longest: int, most: int) -> list[int]:
    """The draft as it is defined, by looking at every place in the text for every length."""
    draft: list[int] = []
    length = longest
    while len(draft) < most:
        whole = text + draft
        length = min(length, len(whole))
        follows: list[int] = []
        while length >= least and not follows:
            end = whole[len(whole) - length :]
            follows = [text[i + length] for i in range(len(text) - length) if text[i : i + length] == end]
            length -= not follows
        if not follows:
            break
        often = Counter(follows)
        latest = {token: place for place, token in enumerate(follows)}
        draft.append(max(often, key=lambda token: (often[token], latest[token])))
        length += 1  # the same context and the token that followed it
    return draft


texts = st.integers(1, 6).flatmap(lambda vocab: st.lists(st.integers(0, vocab), min_size=1, max_size=60))


@settings(max_examples=400, deadline=None)
@given(text=texts, cut=st.integers(0, 60), least=st.integers(1, 4), more=st.none() | st.integers(0, 3))
def test_draft_is_the_most_frequent_continuation_of_the_longest_context(
    text: list[int], cut: int, least: int, more: int | None
) -> None:
    longest = None if more is None else least + more
    for compiled in (True, False):
        drafter = NgramDrafter(1, NgramOptions(min_match=least, max_match=longest), compiled=compiled)
        start(drafter, text[:cut])
        for at in range(min(cut, len(text)), len(text)):
            extend(drafter, text[at : at + 1])
        assert draft_of(drafter) == searched(text, least, longest or len(text), 8)


def test_equally_frequent_continuations_are_settled_by_the_latest(make: Make) -> None:
    drafter = make(min_match=2)
    start(drafter, [1, 2, 7, 1, 2, 8, 5, 1, 2])
    assert draft_of(drafter, 1) == [8]
    extend(drafter, [7, 6, 1, 2])
    assert draft_of(drafter, 1) == [7]


def test_a_repeating_text_is_drafted_beyond_its_end(make: Make) -> None:
    drafter = make()
    start(drafter, [1, 2, 3, 4] * 3)
    assert draft_of(drafter, 11) == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3]


@pytest.mark.parametrize("vocab", [1, 2, 3, 40])
def test_compiled_and_python_drafts_agree_on_long_texts(vocab: int) -> None:
    """Also where a text ends in more repetitions than are counted, and where windows are renewed."""
    random = np.random.default_rng(vocab)
    pattern = random.integers(0, vocab, 7)
    text = np.concatenate(
        [
            np.tile(pattern, 60),
            random.integers(0, vocab, 600),
            np.tile(pattern[:3], 90),
            random.integers(0, vocab, 90),
        ]
    )
    options = NgramOptions(min_match=2, window=512)
    both = [NgramDrafter(1, options, compiled=compiled) for compiled in (True, False)]
    for drafter in both:
        start(drafter, text[:50])
    at = 50
    while at < len(text):
        length = int(random.integers(1, 9))
        for drafter in both:
            extend(drafter, text[at : at + length])
        at += length
        one, other = (drafter.propose(ints([0]), ints([9])) for drafter in both)
        assert one[1].tolist() == other[1].tolist()
        assert both[0].sources().tolist() == both[1].sources().tolist()


def test_rows_of_a_batch_are_drafted_as_if_alone(make: Make) -> None:
    random = np.random.default_rng(1)
    rows = [random.integers(0, 3, size).tolist() for size in (5, 40, 1, 33)]
    together, alone = make(slots=8, min_match=1), [make(min_match=1) for _ in rows]
    slots = [6, 0, 3, 1]
    for slot, text, single in zip(slots, rows, alone, strict=True):
        start(together, text, slot)
        start(single, text)
    for _ in range(20):
        new = [random.integers(0, 3, random.integers(0, 4)).tolist() for _ in rows]
        together.extend(ints(slots), ints([len(each) for each in new]), ints([*chain(*new)]))
        for single, tokens in zip(alone, new, strict=True):
            extend(single, tokens)
        limits = {slot: int(random.integers(0, 6)) for slot in slots}
        expected = [draft_of(single, limits[slot]) for slot, single in zip(slots, alone, strict=True)]
        assert list(drafts(together, limits).values()) == expected


def test_a_slot_knows_nothing_of_the_request_before(make: Make) -> None:
    drafter = make()
    start(drafter, [1, 2, 3, 4, 5, 1, 2, 3], prediction=ints([9]), num_prompt_tokens=4)
    drafter.stop(0)
    drafter.stop(0)
    start(drafter, [1, 2, 3])
    assert draft_of(drafter) == []
    assert drafter.predicted(ints([0]))[0].tolist() == [0]


def test_a_prompt_is_taken_in_a_part_at_a_time_and_then_drafted_from(make: Make) -> None:
    text = [*range(20), *range(10)]
    drafter = make()
    drafter.start(0, ints(text))
    assert drafter.ingest(12) == 18
    extend(drafter, [10])
    assert drafter.ingest(18) == 1
    assert drafter.ingest(1) == 0
    assert draft_of(drafter, 3) == [11, 12, 13]
    whole = make()
    whole.start(0, ints([*range(50), *range(5)] * 400))
    for _ in range(60):  # every step takes in some
        draft = draft_of(whole, 3)
    assert draft == [0, 1, 2]


def test_texts_that_wait_are_taken_in_in_the_order_they_came(make: Make) -> None:
    drafter = make(slots=2)
    for slot in (1, 0):
        drafter.start(slot, ints([1, 2, 3, 4, 1, 2, 3]))
    assert drafter.ingest(7) == 7
    drafter.stop(1)
    assert drafter.ingest(0) == 7, "what came second waits"
    drafter.stop(0)
    assert drafter.ingest(0) == 0


def test_only_the_last_window_of_a_text_is_drafted_from(make: Make) -> None:
    drafter = make(window=64)
    start(drafter, [1, 2, 3, 99, *range(200, 300)])
    extend(drafter, [1, 2, 3])
    assert draft_of(drafter) == []
    extend(drafter, [98, *range(300, 320), 1, 2, 3])
    assert draft_of(drafter, 1) == [98]


@pytest.mark.parametrize("vocab", [1, 2, 3, 1000, 100_000])
def test_memory_stays_within_the_bound(vocab: int) -> None:
    if load() is None:
        pytest.skip("no C++ compiler")
    text = np.random.default_rng(0).integers(0, vocab, 50_000)
    most_states = np.array([0] * 10_000 + [1] * 10_000)  # a^n b^n has the most
    window = 16_384
    drafter = NgramDrafter(1, NgramOptions(window=window), compiled=True)
    for some in (text, most_states, np.tile([0, 0, 1], 10_000)):
        start(drafter, [])
        largest = 0
        for piece in np.array_split(some, 50):
            extend(drafter, piece)
            largest = max(largest, drafter.memory_bytes(0))
        assert largest <= BYTES_PER_TOKEN * window
        drafter.stop(0)
        assert drafter.memory_bytes(0) < 2_000


def test_outputs_are_shared_within_a_salt_only(make: Make) -> None:
    drafter = make(slots=3, shared_pool=1024)
    start(drafter, [50, 51, 1, 2], num_prompt_tokens=2, cache_salt="a")
    extend(drafter, [3, 4, 5, 6, 7])
    start(drafter, [9, 1, 2, 3, 4], slot=1, cache_salt="a")
    assert draft_of(drafter, slot=1) == [], "the answer is not over"
    drafter.stop(0)
    assert draft_of(drafter, slot=1) == [5, 6, 7]
    start(drafter, [9, 1, 2, 3, 4], slot=2, cache_salt="b")
    assert draft_of(drafter, slot=2) == []
    start(drafter, [8, 8, 50, 51, 1], slot=0, cache_salt="a")
    assert draft_of(drafter, slot=0) == [], "prompts are not shared"


def test_outputs_are_not_shared_unless_asked_for(make: Make) -> None:
    drafter = make(slots=2)
    start(drafter, [50], num_prompt_tokens=1)
    extend(drafter, [1, 2, 3, 4, 5])
    drafter.stop(0)
    start(drafter, [9, 1, 2, 3], slot=1)
    assert draft_of(drafter, slot=1) == []


def test_an_own_context_goes_before_one_of_others_that_is_not_longer(make: Make) -> None:
    drafter = make(slots=2, shared_pool=1024)
    start(drafter, [50], num_prompt_tokens=1)
    extend(drafter, [6, 1, 2, 3, 4])
    drafter.stop(0)
    start(drafter, [1, 2, 3, 70, 80, 1, 2, 3], slot=1)
    assert draft_of(drafter, 1, slot=1) == [70]
    extend(drafter, [71, 6, 1, 2, 3], slot=1)
    assert draft_of(drafter, 1, slot=1) == [4]


def test_a_salt_loses_its_pool_only_when_nobody_uses_it(make: Make) -> None:
    drafter = make(slots=20, shared_pool=64)
    said = [1, 2, 3, 4]

    def answered(salt: str) -> None:
        start(drafter, [50], slot=19, num_prompt_tokens=1, cache_salt=salt)
        extend(drafter, said, slot=19)
        drafter.stop(19)

    def helps(salt: str) -> bool:
        start(drafter, said[:3], slot=18, cache_salt=salt)
        found = draft_of(drafter, slot=18)
        drafter.stop(18)
        return bool(found)

    answered("kept")
    start(drafter, [7], slot=0, cache_salt="kept")
    for i in range(30):
        answered(f"salt {i}")
    assert helps("kept")
    assert helps("salt 29")
    assert not helps("salt 0")


@pytest.mark.parametrize(
    "options",
    [
        {"min_match": 0},
        {"min_match": 3, "max_match": 2},
        {"window": 5},
        {"shared_pool": 5},
        {"shared_pool": -1},
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(reversed(options))):
        NgramOptions(**options)


def test_the_factory_makes_a_drafter() -> None:
    drafter = ngram_drafter(2)
    drafter.start(1, ints([1, 2, 3, 4, 1, 2, 3]))
    assert drafter.propose(ints([1]), ints([1]))[1].tolist() == [4]
