"""Chat messages to the prompt text that the model was trained on: the checkpoint's Jinja template, in a sandbox."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from .dialect import Dialect
from .sandbox import LimitedEnvironment, TemplateLimit
from .tokenizer import Tokenizer

DEFAULT_TEMPLATE = "default"
TOOL_TEMPLATE = "tool_use"


class TemplateError(Exception):
    """This conversation does not fit the model's template; the message says why, on one line."""


class GenerationTag(Extension):
    """`{% generation %}` marks assistant text for training; when serving, its body is all there is to it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> None:
    """What templates call to refuse a conversation."""
    raise TemplateError(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The `tojson` filter as checkpoints expect it: no HTML escaping, UTF-8 left alone."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def environment(seconds: float, max_bytes: int) -> LimitedEnvironment:
    """Jinja as transformers sets it up, sandboxed and bounded."""
    jinja = LimitedEnvironment(
        seconds=seconds,
        max_bytes=max_bytes,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, loopcontrols],
    )
    jinja.add_filter("tojson", to_json)
    jinja.globals["raise_exception"] = raise_exception
    jinja.globals["strftime_now"] = strftime_now
    return jinja


class ChatTemplate:
    """The model's templates, compiled: one for all, or one more for conversations with tools.

    A rendering takes at most `seconds` and makes at most `max_bytes` characters.
    """

    def __init__(
        self,
        sources: dict[str, str],
        special: dict[str, str],
        *,
        seconds: float = 5.0,
        max_bytes: int = 64 << 20,
    ) -> None:
        self._jinja = environment(seconds, max_bytes)
        self._sources = sources
        self._templates = {name: self._jinja.from_string(source) for name, source in sources.items()}
        self._special = special
        self.source = "\n".join(sources.values())
        self.dialect = Dialect.of(self.source)

    @property
    def exists(self) -> bool:
        return bool(self._templates)

    @property
    def described(self) -> str | list[dict[str, str]] | None:
        """As tokenizer_config.json spells it: one text, or a list of named ones."""
        if len(self._sources) < 2:
            return next(iter(self._sources.values()), None)
        return [{"name": name, "template": source} for name, source in self._sources.items()]

    def mentions(self, word: str) -> bool:
        """Does any template speak of `word` (a role, a variable)?"""
        return any(word in source for source in self._sources.values())

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: dict[str, Any],
    ) -> str:
        """The prompt. Raises `TemplateError` for whatever goes wrong: templates only fail on what they are given."""
        name = TOOL_TEMPLATE if tools and TOOL_TEMPLATE in self._templates else DEFAULT_TEMPLATE
        template = self._templates.get(name) or next(iter(self._templates.values()))
        try:
            text = self._jinja.render(
                template,
                {
                    **self._special,
                    **variables,
                    "messages": messages,
                    "tools": tools,
                    "add_generation_prompt": add_generation_prompt,
                },
            )
        except TemplateError as error:
            raise TemplateError(str(error)) from None
        except TemplateLimit as error:
            raise TemplateError(str(error)) from None
        except RecursionError:
            raise TemplateError("it is nested too deeply") from None
        except Exception as error:  # a template is a program: any exception of its can come out of it
            raise TemplateError(f"{type(error).__name__}: {error}") from None
        return up_to_final_message(text, messages[-1]) if continue_final_message else text


def up_to_final_message(text: str, message: dict[str, Any]) -> str:
    """The prompt cut right behind the last message's own text, so that the model goes on with it."""
    content = message.get("content") or ""
    wanted = content.strip()
    start = text.rfind(wanted)
    if not wanted or start < 0:
        raise TemplateError("continue_final_message needs a last message whose text the chat template keeps")
    end = start + len(wanted)
    tail = content[len(content.rstrip()) :]
    return text[:end] + (tail if text.startswith(tail, end) else "")


def load_template(
    override: str | None, directories: list[Path], tokenizer: Tokenizer, *, seconds: float, max_bytes: int
) -> ChatTemplate:
    """The option's text, else chat_template.jinja, else what tokenizer_config.json holds (a text or a named list)."""
    sources = find_sources(override, directories, tokenizer)
    return ChatTemplate(sources, tokenizer.special, seconds=seconds, max_bytes=max_bytes)


def find_sources(override: str | None, directories: list[Path], tokenizer: Tokenizer) -> dict[str, str]:
    if override is not None:
        return {DEFAULT_TEMPLATE: override}
    for directory in directories:
        path = directory / "chat_template.jinja"
        if path.is_file():
            return {DEFAULT_TEMPLATE: path.read_text(encoding="utf-8")}
    declared = tokenizer.config.get("chat_template")
    if isinstance(declared, str):
        return {DEFAULT_TEMPLATE: declared}
    if isinstance(declared, list):
        return {
            entry["name"]: entry["template"]
            for entry in declared
            if isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("template"), str)
        }
    return {}


TemplateSyntaxError = jinja2.TemplateSyntaxError
