"""Tool calls are read as every family writes them, however the answer is cut, and nothing else is taken for one."""

from __future__ import annotations

import json
import random
import re
from itertools import combinations, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from penstock.server.parsing.events import CallArguments, CallStart, Content, Event, merged
from penstock.server.parsing.tools.registry import FORMATS, NAMES, find
from tool_answers import SAMPLES, TOOLS, Sample

OWN_NAMES = tuple(SAMPLES)
ALL = [(name, sample) for name, samples in SAMPLES.items() for sample in samples]
IDS = [f"{name}-{place}" for name, samples in SAMPLES.items() for place in range(len(samples))]
SHORT = 70  # characters of an answer that is cut at every pair of places

every_sample = pytest.mark.parametrize(("name", "sample"), ALL, ids=IDS)


def parse(name: str, pieces: list[str]) -> list[Event]:
    known = find(name)
    assert known is not None
    parser = known.parser(TOOLS)
    events = [event for piece in pieces for event in parser.push(piece)]
    return merged(events + parser.finish())


def cut(text: str, places: list[int]) -> list[str]:
    ends = [0, *places, len(text)]
    return [text[start:end] for start, end in pairwise(ends)]


@every_sample
def test_sample_says_what_it_is_known_to_say(name: str, sample: Sample) -> None:
    assert parse(name, [sample.text]) == sample.events


@every_sample
def test_sample_says_the_same_however_it_is_cut(name: str, sample: Sample) -> None:
    text = sample.text
    assert parse(name, list(text)) == sample.events
    assert parse(name, [piece for char in text for piece in ("", char)]) == sample.events
    for place in range(1, len(text)):
        assert parse(name, cut(text, [place])) == sample.events, place
    if len(text) <= SHORT:
        for places in combinations(range(1, len(text)), 2):
            assert parse(name, cut(text, list(places))) == sample.events, places
    chance = random.Random(len(text))
    for _ in range(40):
        places = sorted(chance.sample(range(len(text)), min(len(text), chance.randrange(2, 12))))
        assert parse(name, cut(text, places)) == sample.events, places


@pytest.mark.parametrize("name", OWN_NAMES)
def test_every_beginning_of_an_answer_can_be_its_end(name: str) -> None:
    for sample in SAMPLES[name]:
        for end in range(len(sample.text)):
            beginning = sample.text[:end]
            events = parse(name, [beginning])
            assert events == parse(name, list(beginning))
            if not any(isinstance(event, CallStart) for event in events):
                assert "".join(event.text for event in events if isinstance(event, Content)) == beginning


@pytest.mark.parametrize("name", OWN_NAMES)
def test_call_is_announced_before_its_arguments_end(name: str) -> None:
    text, expected = SAMPLES[name][0]
    known = find(name)
    assert known is not None
    parser = known.parser(TOOLS)
    started_at = None
    growing = 0
    for place, char in enumerate(text):
        for event in parser.push(char):
            if isinstance(event, CallStart):
                started_at = place
            growing += isinstance(event, CallArguments)
    (arguments,) = [event.text for event in expected if isinstance(event, CallArguments)]
    value = next(iter(json.loads(arguments).values()))
    assert started_at is not None
    assert started_at < text.index(value)
    assert growing >= len(value)


def fragments(name: str) -> list[str]:
    """What the format's samples are made of: their markers and the words between."""
    pieces = {
        piece
        for sample in SAMPLES[name]
        for piece in re.findall(r"<[^<>\s]*>?|\[[A-Z_]*\]?|\w+|\s|\W", sample.text)
    }
    return sorted(pieces)


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A format, and text that is more or less like its calls, in pieces."""
    name = draw(st.sampled_from(OWN_NAMES))
    piece = st.sampled_from(fragments(name)) | st.sampled_from([sample.text for sample in SAMPLES[name]])
    some = st.lists(piece | st.text(max_size=3), max_size=25)
    text = "".join(draw(some))
    places = draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    return name, cut(text, places)


@settings(max_examples=600, deadline=None)
@given(answers())
@example(("hermes", ["<tool_call>{", '"name": "\ud800", "arguments": {}}']))
@example(("qwen3_coder", ["<function=f><parameter=x>", "\udfff</parameter></function>"]))
def test_whatever_a_model_writes_is_read_alike_in_pieces_and_whole(answer: tuple[str, list[str]]) -> None:
    name, pieces = answer
    text = "".join(pieces)
    events = parse(name, pieces)
    assert events == parse(name, [text])
    assert events == parse(name, list(text))
    if not any(isinstance(event, CallStart) for event in events):
        assert "".join(event.text for event in events if isinstance(event, Content)) == text
    numbers = [event.call for event in events if isinstance(event, CallStart)]
    assert numbers == list(range(len(numbers)))
    for before, event in pairwise(events):
        if isinstance(event, CallArguments):
            assert isinstance(before, CallStart)
            assert before.call == event.call


MEGABYTE = 1_000_000
TOKEN = 7  # characters
DEEP = 20_000
LONG = {
    "hermes": ('<tool_call>{"name": "get_weather", "arguments": {"city": "', '"}}</tool_call>'),
    "llama3_json": ('{"name": "get_weather", "parameters": {"city": "', '"}}'),
    "pythonic": ('[get_weather(city="', '")]'),
    "mistral": ('[TOOL_CALLS]get_weather[ARGS]{"city": "', '"}'),
    "deepseek_v31": ('<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "', '"}<｜tool▁call▁end｜>'),
    "kimi_k2": ('<|tool_call_begin|>get_weather:0<|tool_call_argument_begin|>{"city": "', '"}'),
    "qwen3_coder": ("<function=get_weather><parameter=city>", "</parameter></function>"),
    "glm45": ("<tool_call>get_weather\n<arg_key>city</arg_key><arg_value>", "</arg_value></tool_call>"),
    "minimax_m2": (
        '<minimax:tool_call><invoke name="get_weather"><parameter name="city">',
        "</parameter></invoke>",
    ),
}


class CountedText(str):
    """A text that counts the characters which are copied when more is put behind it or a part is taken out."""

    copied = 0

    def __add__(self, other: str) -> CountedText:
        CountedText.copied += len(self) + len(other)
        return CountedText(str.__add__(self, other))

    def __radd__(self, other: str) -> CountedText:
        return CountedText(other) + self

    def __getitem__(self, key: object) -> CountedText:
        piece = CountedText(str.__getitem__(self, key))  # type: ignore[index]
        CountedText.copied += len(piece)
        return piece


@pytest.mark.parametrize("name", LONG)
def test_work_on_long_arguments_grows_with_their_length_only(name: str) -> None:
    def copied(size: int) -> int:
        known = find(name)
        assert known is not None
        parser = known.parser(TOOLS)
        begin, end = LONG[name]
        CountedText.copied = 0
        events: list[Event] = []
        for char in begin + "x<y " * (size // 4) + end:
            events += parser.push(CountedText(char))
        events += parser.finish()
        copied = CountedText.copied
        arguments = "".join(event.text for event in events if isinstance(event, CallArguments))
        assert json.loads(arguments) == {"city": "x<y " * (size // 4)}
        return copied

    small, large = copied(2_000), copied(8_000)
    assert 0 < large < 4.5 * small


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder"])
def test_a_megabyte_of_arguments_comes_through_whole(name: str) -> None:
    begin, end = LONG[name]
    text = begin + "x" * MEGABYTE + end
    known = find(name)
    assert known is not None
    parser = known.parser(TOOLS)
    events = [event for at in range(0, len(text), TOKEN) for event in parser.push(text[at : at + TOKEN])]
    arguments = "".join(event.text for event in events if isinstance(event, CallArguments))
    assert json.loads(arguments) == {"city": "x" * MEGABYTE}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize(
    "filler", ["[", '{"a":', '"', "\\", " ", "<", "{", "<tool_call>", "</parameter>", '["']
)
def test_no_long_answer_is_too_much(name: str, filler: str) -> None:
    begin, end = LONG[name]
    for opening in (begin, begin.replace("city", "options"), begin[: len(begin) // 2], ""):
        text = opening + filler * (DEEP // len(filler)) + end
        events = parse(name, [text[place : place + 100] for place in range(0, len(text), 100)])
        assert events
        assert events == parse(name, [text])


def test_every_spelling_of_a_format_finds_it() -> None:
    assert len(NAMES) == sum(len(known.names) for known in FORMATS)
    for known in FORMATS:
        assert all(find(name) is known for name in known.names)
    assert find("no such format") is None
    spelled_by_others = (
        "hermes qwen25 qwen llama3_json llama3 llama4_json llama4_pythonic pythonic mistral deepseek_v3 deepseekv3 "
        "deepseek_v31 deepseekv31 deepseek_v32 deepseekv32 glm45 glm47 glm kimi_k2 openai gpt-oss qwen3_coder "
        "qwen3_xml minimax_m2 minimax-m2"
    )
    assert set(spelled_by_others.split()) <= set(NAMES)


def test_every_format_but_harmony_has_samples_here() -> None:
    assert {known.names[0] for known in FORMATS} - {"openai"} == set(SAMPLES)
