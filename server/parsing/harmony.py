"""gpt-oss's messages in channels (OpenAI's harmony format): reasoning, content and tool calls by one parser.

An answer is a run of messages `<|start|>assistant HEADER<|message|>BODY<|end|>`, the first of which the prompt has
begun. The header names a channel (`<|channel|>analysis`, `commentary` or `final`), for a call also its recipient
(`to=functions.NAME`) and the kind of its body (`<|constrain|>json`). A call ends with `<|call|>`, the last message
with `<|return|>`; both end the answer. Commentary to nobody is meant for the user.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from .events import CallArguments, CallStart, Content, Event, Reasoning
from .interface import Parser, ReasoningFormat, ReasoningParser, TagFormat, ToolFormat, ToolSchema
from .markers import first_of, undecided_from
from .tags import any_text, without
from .tools.grammar import either, json_arguments, optional, sequence, text

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKERS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)
STOPS = (CALL, RETURN)
AFTER_BODY = (END, CALL, RETURN, START, CHANNEL)  # the last two: the model forgot the end
AFTER_HEADER = (MESSAGE, START, END, CALL, RETURN)
ENDS = (END, CALL, RETURN)
NEXT = END + START + "assistant"
RECIPIENT = re.compile(r"\bto=([^\s<]+)")
CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
FUNCTIONS = "functions."
ROLE, TO = "assistant", "to="
MAX_HEADER_CHARS = 512


class Kind(Enum):
    """What a message's body is."""

    REASONING = auto()
    CONTENT = auto()
    CALL = auto()


class HarmonyParser:
    """One answer. Without `tools` calls are content: their arguments as the model wrote them."""

    def __init__(self, prompt: str, *, tools: bool) -> None:
        self._tools = tools
        self._held = ""
        self._kind: Kind | None = None  # None: in a header
        self._calls = 0
        self._argued = False  # the call has had arguments
        self._said: set[Kind] = (
            set()
        )  # kinds that have had text: their next message begins on a line of its own
        self._fresh = False  # at the start of a message's body
        self._begun, in_body = begun_message(prompt)
        if in_body:
            self._open(self._begun)
            self._begun = ""
            self._fresh = False

    @property
    def thinking(self) -> bool:
        return self._kind is Kind.REASONING

    def push(self, text: str) -> list[Event]:
        self._held += text
        events: list[Event] = []
        while self._body(events) if self._kind is not None else self._header(events):
            pass
        return events

    def finish(self) -> list[Event]:
        events: list[Event] = []
        held, self._held = self._held, ""
        if self._kind is None:
            self._bodiless(held, events)
        else:
            self._say(held, events)
        self._close(events)
        return events

    def _header(self, events: list[Event]) -> bool:
        """One transition within a header; False if more text is needed."""
        begun = self._held.lstrip()
        if begun.startswith(START):
            self._held = begun.removeprefix(START)
            return True
        if START.startswith(begun):
            return False
        if not may_lead(self._lead()):
            self._plain()
            return True
        end, marker = first_of(self._held, AFTER_HEADER)
        if marker is None:
            end = undecided_from(self._held, MARKERS)
        if end > MAX_HEADER_CHARS:
            self._plain()
            self._say(self._held[:MAX_HEADER_CHARS], events)
            self._held = self._held[MAX_HEADER_CHARS:]
            return True
        if marker is None:
            return False
        header, self._held = self._held[:end], self._held[end + len(marker) :]
        if marker == MESSAGE:
            events += self._open(self._begun + header)
        else:
            self._bodiless(header, events)
        self._begun = ""
        return True

    def _lead(self) -> str:
        """What stands before the header's first marker, as far as it is known."""
        end, marker = first_of(self._held, MARKERS)
        return self._held[: undecided_from(self._held, MARKERS) if marker is None else end].strip()

    def _plain(self) -> None:
        """There is text where a header should be: it is content."""
        self._begun = ""
        self._kind = Kind.CONTENT
        self._fresh = Kind.CONTENT in self._said

    def _bodiless(self, header: str, events: list[Event]) -> None:
        """A header that nothing follows is dropped; text that only looked like one is not."""
        end, marker = first_of(header, MARKERS)
        lead = (header if marker is None else header[:end]).strip()
        if CHANNEL not in header and lead not in ("", ROLE) and TO not in lead:
            self._plain()
            self._say(header, events)
            self._close(events)

    def _open(self, header: str) -> list[Event]:
        """The body that this header announces."""
        recipient = RECIPIENT.search(header)
        self._fresh = True
        self._argued = False
        if recipient is not None and recipient[1].startswith(FUNCTIONS) and self._tools:
            self._kind = Kind.CALL
            self._calls += 1
            return [CallStart(self._calls - 1, recipient[1].removeprefix(FUNCTIONS))]
        self._kind = Kind.REASONING if is_analysis(header) else Kind.CONTENT
        return []

    def _body(self, events: list[Event]) -> bool:
        end, marker = first_of(self._held, AFTER_BODY)
        if marker is None:
            keep = undecided_from(self._held, AFTER_BODY)
            said, self._held = self._held[:keep], self._held[keep:]
            self._say(said, events)
            return False
        said, self._held = self._held[:end], self._held[end:]
        if marker in ENDS:
            self._held = self._held.removeprefix(marker)
        self._say(said, events)
        self._close(events)
        return True

    def _say(self, said: str, events: list[Event]) -> None:
        kind = self._kind
        assert kind is not None
        if not said:
            return
        if kind is Kind.CALL:
            if not self._argued:
                said = said.lstrip()
            if said:
                self._argued = True
                events.append(CallArguments(self._calls - 1, said))
            return
        if self._fresh and kind in self._said:
            said = "\n" + said
        self._fresh = False
        self._said.add(kind)
        events.append(Reasoning(said) if kind is Kind.REASONING else Content(said))

    def _close(self, events: list[Event]) -> None:
        """The end of a message."""
        if self._kind is Kind.CALL and not self._argued:
            events.append(CallArguments(self._calls - 1, "{}"))
        self._kind = None


def begun_message(prompt: str) -> tuple[str, bool]:
    """(the header that the prompt begins for the model, does it end in the body behind it?)"""
    begun = prompt[prompt.rfind(START) + len(START) :] if START in prompt else ""
    header, found, body = begun.partition(MESSAGE)
    return (header, bool(found)) if first_of(body, ENDS)[1] is None else ("", False)


def body_kind(prompt: str) -> Kind | None:
    """The kind of text in whose midst the prompt ends, if it does."""
    header, in_body = begun_message(prompt)
    if not in_body:
        return None
    return Kind.REASONING if is_analysis(header) else Kind.CONTENT


def is_analysis(header: str) -> bool:
    channel = CHANNEL_NAME.search(header)
    return channel is not None and channel[1] == "analysis"


def may_lead(lead: str) -> bool:
    """Can a header begin like this: the role, then perhaps a recipient? Never true again once it was not."""
    if ROLE.startswith(lead):
        return True
    rest = lead.removeprefix(ROLE)
    if rest != lead and rest and not rest[0].isspace():
        return False
    rest = rest.strip()
    return TO.startswith(rest) or (rest.startswith(TO) and len(rest.split()) == 1)


def header(channel: str, rest: str = "") -> TagFormat:
    return text(f"{CHANNEL}{channel}{rest}{MESSAGE}")


def call(tool: ToolSchema, *, enforced: bool) -> TagFormat:
    """A call of `tool`, in both of the orders that gpt-oss writes."""
    name = FUNCTIONS + tool.name
    return sequence(
        either(
            header("commentary", f" to={name} {CONSTRAIN}json"),
            text(f" to={name}{CHANNEL}commentary {CONSTRAIN}json{MESSAGE}"),
            text(f" to={name}{CHANNEL}commentary json{MESSAGE}"),
        ),
        json_arguments(tool, enforced=enforced),
    )


class HarmonyReasoning(ReasoningFormat):
    names = ("openai_gptoss", "gpt-oss", "gpt_oss", "harmony")
    markers = MARKERS
    stops = STOPS

    def matches(self, model_type: str, template: str) -> bool:
        return is_harmony(model_type, template)

    def parser(self, prompt: str) -> ReasoningParser:
        return HarmonyParser(prompt, tools=False)

    def parser_with_tools(self, prompt: str) -> ReasoningParser:
        return HarmonyParser(prompt, tools=True)

    def tag(self, prompt: str, answer: TagFormat, *, budget: int | None) -> TagFormat:
        """Perhaps one message of analysis, then `answer` with its own headers."""
        thinking = [any_text(MARKERS, budget), text(NEXT)]
        begun = body_kind(prompt)
        if begun is Kind.REASONING:
            return sequence(*thinking, answer)
        if budget == 0 or begun is not None:
            return answer
        return sequence(optional(sequence(header("analysis"), *thinking)), answer)

    def final(self, prompt: str, answer: TagFormat) -> TagFormat:
        unmarked = without(answer, MARKERS)
        return unmarked if body_kind(prompt) is Kind.CONTENT else sequence(header("final"), unmarked)


class HarmonyTools(ToolFormat):
    names = ("openai", "gpt-oss", "gpt_oss", "harmony")
    markers = MARKERS
    stops = STOPS

    def matches(self, model_type: str, template: str) -> bool:
        return is_harmony(model_type, template)

    def parser(self, tools: list[ToolSchema]) -> Parser:
        return HarmonyParser("", tools=True)

    def tag(self, tools: list[ToolSchema], *, at_least_one: bool, at_most_one: bool) -> TagFormat:
        """One call: `<|call|>` ends the answer, there is never a second."""
        if at_least_one:
            return either(*(call(tool, enforced=True) for tool in tools))
        calls = [call(tool, enforced=False) for tool in tools]
        last = either(*calls, sequence(header("final"), any_text(MARKERS)))
        preamble = sequence(header("commentary"), any_text(MARKERS), text(NEXT))
        return sequence(optional(preamble), last)


def is_harmony(model_type: str, template: str) -> bool:
    return model_type == "gpt_oss" or (CHANNEL in template and MESSAGE in template)
