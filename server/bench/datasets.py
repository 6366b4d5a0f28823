"""What is asked: the prompts and conversations of the `random`, `shared-prefix` and `jsonl` data sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from .vocabulary import Vocabulary

Message: TypeAlias = dict[str, Any]
Picks: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Prompt:
    """One request of /v1/completions, or of chat when it is text (then it is the user's message)."""

    prompt: str | list[int]
    max_tokens: int
    system: str | None = None  # chat only: what goes before as the system message
    prompt_tokens: int | None = None  # None: only the server knows


@dataclass(frozen=True)
class Conversation:
    """A chat; each turn is the messages that come before the model's next answer, which it is asked for."""

    turns: list[list[Message]]
    max_tokens: int


Item: TypeAlias = Prompt | Conversation


def lengths(rng: np.random.Generator, mean: int, spread: float, count: int) -> NDArray[np.int64]:
    """`count` lengths, uniform over mean * (1 - spread) to mean * (1 + spread), both included, at least 1."""
    low = max(1, math.floor(mean * (1 - spread)))
    high = max(low, math.ceil(mean * (1 + spread)))
    return rng.integers(low, high, size=count, endpoint=True)


@dataclass(frozen=True)
class RandomSizes:
    """`random`: independent prompts; lengths in tokens, `spread` as in `lengths`."""

    num_prompts: int
    input_len: int
    output_len: int
    spread: float


async def random_prompts(
    sizes: RandomSizes, vocabulary: Vocabulary, seed: int, as_text: bool
) -> list[Prompt]:
    """Prompts of independent random tokens: no two share a prefix worth caching."""
    rng = np.random.default_rng(seed)
    inputs = lengths(rng, sizes.input_len, sizes.spread, sizes.num_prompts)
    outputs = lengths(rng, sizes.output_len, sizes.spread, sizes.num_prompts)
    picks = [rng.integers(vocabulary.size, size=int(length)) for length in inputs]
    prompts = await _render(vocabulary, picks, as_text)
    return [
        Prompt(prompt, int(output), prompt_tokens=len(prompt) if isinstance(prompt, list) else None)
        for prompt, output in zip(prompts, outputs, strict=True)
    ]


@dataclass(frozen=True)
class SharedPrefixSizes:
    """`shared-prefix`: groups of prompts that begin with the same system prompt; lengths in tokens."""

    num_groups: int
    prompts_per_group: int
    system_prompt_len: int
    question_len: int
    output_len: int


async def shared_prefix_prompts(
    sizes: SharedPrefixSizes, vocabulary: Vocabulary, seed: int, as_text: bool, chat: bool
) -> list[Prompt]:
    """All groups' prompts in random order. In chat the shared part is the system message."""
    rng = np.random.default_rng(seed)
    systems = [rng.integers(vocabulary.size, size=sizes.system_prompt_len) for _ in range(sizes.num_groups)]
    count = sizes.num_groups * sizes.prompts_per_group
    questions = [rng.integers(vocabulary.size, size=sizes.question_len) for _ in range(count)]
    order = rng.permutation(count)
    group_of = [int(index) // sizes.prompts_per_group for index in order]
    if chat:
        system_texts = await vocabulary.texts([picks.tolist() for picks in systems])
        texts = await vocabulary.texts([questions[index].tolist() for index in order])
        return [
            Prompt(text, sizes.output_len, system=system_texts[group])
            for text, group in zip(texts, group_of, strict=True)
        ]
    picks = [
        np.concatenate((systems[group], questions[index]))
        for index, group in zip(order, group_of, strict=True)
    ]
    prompts = await _render(vocabulary, picks, as_text)
    return [
        Prompt(prompt, sizes.output_len, prompt_tokens=len(prompt) if isinstance(prompt, list) else None)
        for prompt in prompts
    ]


async def _render(vocabulary: Vocabulary, picks: Sequence[Picks], as_text: bool) -> Sequence[str | list[int]]:
    if as_text or not vocabulary.exact:
        return await vocabulary.texts([pick.tolist() for pick in picks])
    return [vocabulary.ids(pick.tolist()) for pick in picks]


class Line(msgspec.Struct):
    """One line of a `jsonl` data set: a prompt or a conversation."""

    prompt: str | list[int] | None = None
    messages: list[Message] | None = None
    max_tokens: int | None = None


def read_jsonl(path: Path, output_len: int, multi_turn: bool) -> list[Item]:
    """The items of a file, in its order; `output_len` is for lines without max_tokens. Raises ValueError."""
    decoder = msgspec.json.Decoder(Line)
    items: list[Item] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"--dataset-path {path}: {error.strerror}") from None
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = decoder.decode(text)
            items.append(_item(line, output_len, multi_turn))
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"--dataset-path {path}, line {number}: {error}") from None
    if not items:
        raise ValueError(f"--dataset-path {path}: the file holds no prompts")
    return items


def _item(line: Line, output_len: int, multi_turn: bool) -> Item:
    max_tokens = output_len if line.max_tokens is None else line.max_tokens
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, must be at least 1")
    if (line.prompt is None) == (line.messages is None):
        raise ValueError('needs either "prompt" or "messages"')
    if line.prompt is not None:
        known = len(line.prompt) if isinstance(line.prompt, list) else None
        return Prompt(line.prompt, max_tokens, prompt_tokens=known)
    assert line.messages is not None
    turns = split_turns(line.messages)
    if not turns:
        raise ValueError('"messages" holds nothing to answer')
    if multi_turn:
        return Conversation(turns, max_tokens)
    messages = line.messages
    while messages[-1].get("role") == "assistant":  # the answer that is to be generated
        messages = messages[:-1]
    return Conversation([messages], max_tokens)


def split_turns(messages: Sequence[Message]) -> list[list[Message]]:
    """The messages before each of the model's answers; recorded answers are left out, new ones take their place."""
    turns: list[list[Message]] = []
    turn: list[Message] = []
    for message in messages:
        if message.get("role") != "assistant":
            turn.append(message)
        elif turn:
            turns.append(turn)
            turn = []
    return [*turns, turn] if turn else turns
