"""What an answer is made of, in the order in which it comes."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Reasoning(NamedTuple):
    """A piece of the model's thinking."""

    text: str


class Content(NamedTuple):
    """A piece of the answer itself."""

    text: str


class CallStart(NamedTuple):
    """Tool call number `call` (from 0) begins. `id` is the model's own, where its format has one."""

    call: int
    name: str
    id: str | None = None


class CallArguments(NamedTuple):
    """A fragment of the JSON text of call `call`'s arguments; fragments concatenate to the whole text."""

    call: int
    text: str


Event: TypeAlias = Reasoning | Content | CallStart | CallArguments


def merged(events: list[Event]) -> list[Event]:
    """The same answer in the fewest events: neighbours of one kind (and one call) joined, empty texts left out."""
    result: list[Event] = []
    for event in events:
        if isinstance(event, CallStart):
            result.append(event)
            continue
        if not event.text:
            continue
        last = result[-1] if result else None
        if type(last) is type(event) and not isinstance(last, CallStart):
            if isinstance(last, CallArguments) and isinstance(event, CallArguments):
                if last.call == event.call:
                    result[-1] = CallArguments(last.call, last.text + event.text)
                    continue
            elif isinstance(last, Reasoning):
                result[-1] = Reasoning(last.text + event.text)
                continue
            elif isinstance(last, Content):
                result[-1] = Content(last.text + event.text)
                continue
        result.append(event)
    return result
