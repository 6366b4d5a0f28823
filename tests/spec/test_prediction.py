"""Drafts from the answer that a user predicted: followed from its start, found again after a divergence, counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.kernels.cpu.library import load
from penstock.spec.ngram import NgramDrafter, NgramOptions

Make = Callable[..., NgramDrafter]
SLOT = np.zeros(1, np.int32)
PROMPT = [900, 901, 902]


def ints(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.fixture(params=["compiled", "python"])
def make(request: pytest.FixtureRequest) -> Make:
    """A drafter whose slot 0 has this prediction, and this text, of which PROMPT is prompt."""
    compiled = request.param == "compiled"
    if compiled and load() is None:
        pytest.skip("no C++ compiler")
    return lambda *arguments: made(*arguments, compiled=compiled)


def made(prediction: Sequence[int], text: Sequence[int] = PROMPT, *, compiled: bool) -> NgramDrafter:
    drafter = NgramDrafter(1, NgramOptions(), compiled=compiled)
    drafter.start(0, ints(text), ints(prediction), num_prompt_tokens=len(PROMPT))
    return drafter


def draft_of(drafter: NgramDrafter, most: int = 4) -> list[int]:
    return drafter.propose(SLOT, ints([most]))[1].tolist()


def say(drafter: NgramDrafter, *tokens: int, verified: int | None = None) -> None:
    looked_at = None if verified is None else ints([verified])
    drafter.extend(SLOT, ints([len(tokens)]), ints(tokens), looked_at)


def counted(drafter: NgramDrafter) -> tuple[int, int]:
    accepted, rejected = drafter.predicted(SLOT)
    return int(accepted[0]), int(rejected[0])


def steps_to_say(drafter: NgramDrafter, answer: Sequence[int], most: int) -> int:
    """Steps of a model that says exactly `answer` and accepts what agrees with it."""
    at = steps = 0
    while at < len(answer):
        draft = draft_of(drafter, min(most, len(answer) - at - 1))
        said = 0
        while said < len(draft) and draft[said] == answer[at + said]:
            said += 1
        say(drafter, *answer[at : at + said + 1])
        at += said + 1
        steps += 1
    return steps


class Followed:
    """The definition: where the longest end of the answer stands, of equals the nearest behind the last sure place."""

    def __init__(self, prediction: list[int]) -> None:
        self.prediction, self.said = prediction, list[int]()
        self.at, self.sure, self.length = 0, 0, 99
        self.is_guess = False

    def say(self, token: int) -> None:
        self.said.append(token)
        was_sure = self.length >= 3
        if self.length and self.prediction[self.at : self.at + 1] == [token]:
            self.at, self.length = self.at + 1, self.length + 1
        else:
            self.is_guess = False
            found = [
                (self.length_at(i), i >= self.sure, -abs(i - self.sure), i)
                for i in range(len(self.prediction))
            ]
            self.length, _, _, place = max(found, default=(0, False, 0, 0))
            if self.length:
                self.at = place + 1
            elif was_sure:
                self.at, self.is_guess = self.sure + 1, True
        if self.length >= 3:
            self.sure = self.at

    def length_at(self, place: int) -> int:
        length = 0
        while (
            length < min(16, place + 1, len(self.said))
            and self.prediction[place - length] == self.said[-1 - length]
        ):
            length += 1
        return length

    def draft(self, most: int) -> list[int]:
        return self.prediction[self.at : self.at + most] if self.length or self.is_guess else []


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_prediction_is_followed_as_defined(data: st.DataObject) -> None:
    vocab = data.draw(st.integers(0, 9))
    prediction = data.draw(st.lists(st.integers(0, vocab), min_size=1, max_size=40))
    answer = data.draw(st.lists(st.integers(0, vocab + 1), max_size=40))
    if data.draw(st.booleans()):  # an edit of the prediction
        cut = data.draw(st.integers(0, len(prediction)))
        answer = prediction[:cut] + answer[:3] + prediction[cut + data.draw(st.integers(0, 3)) :]
    defined = Followed(prediction)
    # Contexts that no text has, so that nothing but the prediction is drafted from.
    options = NgramOptions(min_match=1000)
    drafters = [NgramDrafter(1, options, compiled=compiled) for compiled in (True, False)]
    for drafter in drafters:
        drafter.start(0, ints(PROMPT), ints(prediction))
    for token in [*answer, None]:
        for drafter in drafters:
            assert draft_of(drafter) == defined.draft(4)
            if token is not None:
                say(drafter, token)
        if token is not None:
            defined.say(token)


def test_before_any_output_the_draft_is_the_start_of_the_prediction(make: Make) -> None:
    drafter = make([1, 2, 3, 4, 5])
    assert draft_of(drafter) == [1, 2, 3, 4]
    say(drafter, 1)
    assert draft_of(drafter) == [2, 3, 4, 5]


def test_an_answer_that_was_predicted_takes_one_step_for_each_draft(make: Make) -> None:
    answer = list(range(100))
    assert steps_to_say(make(answer), answer, 9) == 10


@pytest.mark.parametrize(
    ("answer", "steps"),
    [
        ([*range(20), 500, *range(21, 50)], 7),  # a token replaced: known at once
        ([*range(20), 500, 501, *range(22, 50)], 9),
        ([*range(20), 500, 501, 502, *range(20, 50)], 10),
        ([*range(20), *range(30, 50)], 6),  # some left out
    ],
)
def test_the_prediction_is_found_again_after_an_edit(make: Make, answer: list[int], steps: int) -> None:
    assert steps_to_say(make(list(range(50))), answer, 9) <= steps


def test_of_equal_places_the_nearest_behind_the_last_one_is_taken(make: Make) -> None:
    line = [7, 8]
    prediction = [*line, 1, 2, 3, 4, *line, 5, *line, 6]
    drafter = make(prediction)
    say(drafter, 7, 8, 1, 2, 3, 99, *line)
    assert draft_of(drafter, 1) == [5]


def test_the_prediction_goes_before_the_text_where_both_are_as_sure(make: Make) -> None:
    drafter = make([1, 2, 3, 50], [*PROMPT, 1, 2, 3, 60, 1, 2, 3])
    drafter.stop(0)
    drafter.start(0, ints([1, 2, 3, 60]), ints([1, 2, 3, 50]))
    say(drafter, 1, 2, 3)
    assert draft_of(drafter, 1) == [50]
    drafter.stop(0)
    drafter.start(0, ints([4, 1, 2, 3, 60]), ints([9, 1, 2, 3, 50]))
    say(drafter, 4, 1, 2, 3)
    assert draft_of(drafter, 1) == [60], "four tokens of the text against three of the prediction"


def test_a_resumed_request_goes_on_in_its_prediction(make: Make) -> None:
    prediction = list(range(40))
    whole, resumed = make(prediction), make(prediction, [*PROMPT, *range(12), 500, 13])
    say(whole, *range(12), 500, 13)
    assert draft_of(whole) == draft_of(resumed) == [14, 15, 16, 17]
    assert counted(resumed) == (0, 0), "what was counted before is not counted again"


def test_output_tokens_that_were_predicted_are_counted(make: Make) -> None:
    drafter = make([1, 2, 3, 4, 5, 6, 7, 8])
    assert draft_of(drafter, 3) == [1, 2, 3]
    say(drafter, 1, 2, 3, 4)
    assert counted(drafter) == (4, 0)
    assert draft_of(drafter, 3) == [5, 6, 7]
    say(drafter, 5, 99)
    assert counted(drafter) == (5, 2)


def test_draft_tokens_that_no_model_looked_at_are_not_counted_as_rejected(make: Make) -> None:
    drafter = make([1, 2, 3, 4])
    assert draft_of(drafter) == [1, 2, 3, 4]
    say(drafter, 99, verified=1)
    assert counted(drafter) == (0, 1)
    drafter.stop(0)
    drafter.start(0, ints(PROMPT), ints([1, 2, 3, 4]))
    draft_of(drafter)
    say(drafter, 99, verified=0)
    assert counted(drafter) == (0, 0)


def test_draft_tokens_from_the_text_count_only_where_the_prediction_agrees(make: Make) -> None:
    drafter = make([], [*PROMPT])
    drafter.stop(0)
    drafter.start(0, ints([4, 1, 2, 3, 60, 61]), ints([9, 1, 2, 3, 60, 71]))
    say(drafter, 4, 1, 2, 3)
    assert draft_of(drafter, 2) == [60, 61]
    say(drafter, 99)
    assert counted(drafter)[1] == 1


def test_a_prediction_takes_part_in_no_other_slot() -> None:
    drafter = NgramDrafter(2, NgramOptions(), compiled=load() is not None)
    drafter.start(0, ints(PROMPT), ints([1, 2, 3]))
    drafter.start(1, ints(PROMPT))
    counts, tokens = drafter.propose(ints([1, 0]), ints([4, 2]))
    assert (counts.tolist(), tokens.tolist()) == ([0, 2], [1, 2])


def test_searching_a_long_prediction_of_one_token_is_bounded(make: Make) -> None:
    """Of a hundred thousand equal places some thousands are looked at; the nearest of them wins all the same."""
    drafter = make([5] * 100_000)
    say(drafter, 5, 5, 5, 99, 5)
    assert draft_of(drafter, 3) == [5, 5, 5]
