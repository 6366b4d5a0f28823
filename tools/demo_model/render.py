"""How messages become the text that the model reads: the chat template, the same in training and serving."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2.sandbox

TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE_PATH.read_text(encoding="utf-8"))


def render(
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    add_generation_prompt: bool = False,
) -> str:
    """The prompt text of `messages`, as `AutoTokenizer.apply_chat_template(tokenize=False)` gives it."""
    return _template().render(
        messages=messages, tools=list(tools) or None, add_generation_prompt=add_generation_prompt
    )
