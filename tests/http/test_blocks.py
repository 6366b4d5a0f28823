"""The blocks of an answer, and the events that both block APIs make of them: for any cut of the text the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.server.api.blocks import Block, Blocks
from penstock.server.api.messages.answer import call_input, content_block
from penstock.server.api.opaque import mark, seal, unseal
from penstock.server.parsing.events import CallArguments, CallStart, Content, Event, Reasoning

ANSWER: list[Event] = [
    Reasoning("I should "),
    Reasoning("look."),
    Content("\n\n"),
    Content("One moment.\n"),
    CallStart(0, "get_weather"),
    CallArguments(0, '{"city": '),
    CallArguments(0, '"Paris"}'),
    Content("\n"),
    CallStart(1, "get_time", "own-id"),
    CallArguments(1, "{}"),
    Content("\n"),
]
MADE = [
    ("reasoning", "I should look."),
    ("text", "\n\nOne moment.\n"),
    ("call", '{"city": "Paris"}'),
    ("call", "{}"),
]


class Ended:
    """The generation's part that blocks speak to."""

    ended = 0

    def sequence_ended(self) -> None:
        self.ended += 1


class Notes:
    """A writer that notes what it is told, and checks that only the last block is ever open."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.open = False

    def opened(self, index: int, block: Block) -> None:
        assert not self.open
        assert index == len(self.texts)
        assert block.text == ""
        self.open = True
        self.texts.append("")

    def grew(self, index: int, block: Block, piece: str, entries: list) -> None:
        assert self.open
        assert index == len(self.texts) - 1
        assert piece
        self.texts[-1] += piece

    def closed(self, index: int, block: Block) -> None:
        assert self.open
        assert self.texts[-1] == block.text
        self.open = False


def blocks_of(batches: list[list[Event]], reason: str = "stop") -> tuple[Blocks, Notes]:
    ended = Ended()
    ids = itertools.count()
    answer = Blocks(ended, lambda: f"call_{next(ids)}")
    answer.writer = notes = Notes()
    for batch in batches:
        answer.events(batch, None)
    answer.finish(reason, None)
    assert ended.ended == 1
    assert not notes.open
    return answer, notes


def test_an_answer_becomes_thinking_text_and_calls_in_their_order() -> None:
    answer, notes = blocks_of([[event] for event in ANSWER])
    assert [(block.kind, block.text) for block in answer.blocks] == MADE
    assert notes.texts == [text for _, text in MADE]
    assert [block.call_id for block in answer.blocks[2:]] == ["call_0", "own-id"]
    assert [block.name for block in answer.blocks[2:]] == ["get_weather", "get_time"]
    assert all(block.complete for block in answer.blocks)


@given(st.data())
def test_how_an_answer_is_cut_changes_nothing(data: st.DataObject) -> None:
    pieces: list[Event] = []
    for event in ANSWER:
        if isinstance(event, CallStart):
            pieces.append(event)
            continue
        text, start = event.text, 0
        for end in [*sorted(data.draw(st.sets(st.integers(1, len(text))))), len(text)]:
            pieces.append(event._replace(text=text[start:end]))
            start = end
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, len(pieces))))), len(pieces)]
    batches = [pieces[start:end] for start, end in itertools.pairwise(cuts)]
    answer, notes = blocks_of(batches)
    assert [(block.kind, block.text) for block in answer.blocks] == MADE
    assert notes.texts == [text for _, text in MADE]


def test_only_the_last_block_of_an_answer_that_was_cut_off_is_incomplete() -> None:
    answer, _ = blocks_of([ANSWER[:6]], "length")
    assert [block.complete for block in answer.blocks] == [True, True, False]


def test_white_space_is_an_answer_only_if_it_is_all_there_is() -> None:
    assert [block.text for block in blocks_of([[Content(" ")], [Content("\n")]])[0].blocks] == [" \n"]
    assert [block.kind for block in blocks_of([[Reasoning("\n"), Content("Yes")]])[0].blocks] == ["text"]
    assert blocks_of([[]])[0].blocks == []


@pytest.mark.parametrize("text", ['{"city": "Par', "[1]", "nothing"])
def test_arguments_that_are_no_object_are_not_lost(text: str) -> None:
    assert call_input(text) == {"unparsed_arguments": text}


def test_thinking_that_is_not_shown_comes_back_from_its_signature() -> None:
    block = Block("reasoning", ["I should look."])
    hidden = content_block(block, hide_thinking=True)
    assert hidden["thinking"] == ""
    assert "look" not in hidden["signature"]
    assert unseal(hidden["signature"]) == "I should look."
    shown = content_block(block, hide_thinking=False)
    assert shown["thinking"] == "I should look."
    assert shown["signature"] == mark("I should look.")
    assert unseal(shown["signature"]) is None


@given(st.text(), st.text(max_size=40))
def test_only_what_was_sealed_is_unsealed(text: str, foreign: str) -> None:
    assert unseal(seal(text)) == text
    unseal("pt1." + foreign)  # whatever a client sends, nothing is raised
    assert unseal("EqQBCkYIARgC" + foreign) is None
