"""Files to tokens: documents, conversations and prompts as the served model would see them, and what of them it wrote."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from ..text.template import ChatTemplate, TemplateError
from ..text.tokenizer import Tokenizer

Tokens: TypeAlias = npt.NDArray[np.int32]
Message: TypeAlias = dict[str, Any]

# Of a text without a prompt: what is taken for one.
PROMPT_SHARE = 0.5
LONGEST_PROMPT = 256
ROLES = {"gpt": "assistant", "system": "system"}  # ShareGPT's, all others are the user


class Line(msgspec.Struct):
    """One line of a .jsonl file: a text, a prompt with or without its completion, or a conversation.

    `conversations` is ShareGPT's spelling of `messages`.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str = ""
    messages: list[Message] | None = None
    conversations: list[Message] | None = None
    tools: list[Message] | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """`wanted` (tokens,) uint8 marks what a head is to draft."""

    tokens: Tokens
    wanted: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, parts: list[tuple[array[int], bool]]) -> Text:
        """Parts one after the other, each wanted or not."""
        tokens = [np.array(part, np.int32) for part, _ in parts]
        wanted = [np.full(len(part), is_wanted, np.uint8) for part, is_wanted in parts]
        return cls(np.concatenate(tokens), np.concatenate(wanted))


def read_lines(path: Path) -> Iterator[Line]:
    """A .jsonl file's lines, or any other file as one text. Raises ValueError naming file and line."""
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: name a file that can be read") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: it is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if path.suffix != ".jsonl":
        yield Line(text=content)
        return
    decoder = msgspec.json.Decoder(Line)
    for number, text in enumerate(content.splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = decoder.decode(text)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        given = [line.text, line.prompt, line.messages, line.conversations]
        if sum(value is not None for value in given) != 1:
            raise ValueError(
                f'{path}, line {number}: needs one of "text", "prompt", "messages" or "conversations"'
            )
        yield line


class TextReader:
    """Lines to tokens by the model's tokenizer and chat template. Methods raise ValueError for what does not fit it."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._max_length = max_length

    def texts(self, line: Line) -> list[Text]:
        """What is trained on: a long text as several of `max_length` tokens, a conversation as one."""
        messages = conversation(line)
        if messages is not None:
            return [self._conversation(messages, line.tools)]
        if line.prompt is not None:
            prompt = self._encode(line.prompt, special=True)
            return [Text.of([(prompt, False), (self._encode(line.completion), True)])]
        assert line.text is not None
        tokens, size = self._encode(line.text, special=True), self._max_length
        return [Text.of([(tokens[i : i + size], True)]) for i in range(0, len(tokens), size)]

    def prompt(self, line: Line) -> Tokens:
        """What the model is asked to continue."""
        messages = conversation(line)
        if messages is not None:
            while messages and messages[-1].get("role") == "assistant":
                messages = messages[:-1]
            if not messages:
                raise ValueError("the conversation holds nothing to answer")
            return np.array(self._encode(self._render(messages, line.tools, ask=True)), np.int32)
        if line.prompt is not None:
            return np.array(self._encode(line.prompt, special=True), np.int32)
        assert line.text is not None
        tokens = self._encode(line.text, special=True)
        return np.array(tokens[: max(1, min(LONGEST_PROMPT, round(len(tokens) * PROMPT_SHARE)))], np.int32)

    def random_prompt(self, rng: np.random.Generator) -> Tokens:
        """A few random words of the vocabulary, as a chat message if there is a template."""
        size = self._tokenizer.vocab_size
        ids = [
            int(i)
            for i in rng.integers(size, size=int(rng.integers(1, 12)))
            if not self._tokenizer.is_special(int(i))
        ]
        words = self._tokenizer.decode(ids).strip() or "?"
        if not self._template.exists:
            return np.array(self._encode(words, special=True), np.int32)
        return np.array(
            self._encode(self._render([{"role": "user", "content": words}], None, ask=True)), np.int32
        )

    def _conversation(self, messages: list[Message], tools: list[Message] | None) -> Text:
        """Wanted is what follows each prompt for an answer, as far as the template keeps earlier turns as they were."""
        whole = self._render(messages, tools, ask=False)
        parts: list[tuple[array[int], bool]] = []
        done = 0
        for index, message in enumerate(messages):
            if message.get("role") != "assistant" or not index:
                continue
            before = self._render(messages[:index], tools, ask=True)
            after = self._render(messages[: index + 1], tools, ask=False)
            if whole.startswith(after) and after.startswith(before) and len(before) >= done:
                parts += [
                    (self._encode(whole[done : len(before)]), False),
                    (self._encode(after[len(before) :]), True),
                ]
                done = len(after)
        parts.append((self._encode(whole[done:]), False))
        return Text.of(parts)

    def _render(self, messages: list[Message], tools: list[Message] | None, *, ask: bool) -> str:
        if not self._template.exists:
            raise ValueError(
                '"messages" need a chat template, and this model has none: give "prompt" or "text"'
            )
        try:
            return self._template.render(
                messages, tools=tools, add_generation_prompt=ask, continue_final_message=False, variables={}
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses it: {error}") from None

    def _encode(self, text: str, *, special: bool = False) -> array[int]:
        return self._tokenizer.encode(text, add_special_tokens=special)


def conversation(line: Line) -> list[Message] | None:
    """Its messages as chat templates take them."""
    if line.messages is not None:
        return line.messages
    if line.conversations is None:
        return None
    return [
        {"role": ROLES.get(str(turn.get("from")), "user"), "content": turn.get("value")}
        for turn in line.conversations
    ]
