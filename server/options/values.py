"""How one option is described, and how the text that a user typed for it becomes a value."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
BINARY = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class BadValue(ValueError):
    """A text that is no value of its option; the message says what would be one."""


@dataclass(frozen=True)
class Option:
    """What an annotation in the configuration tree says about its field, beside type, default and range.

    The flag is the field's name with dashes. `aliases` are further flags for the same thing; `negations` are flags
    that set a bool to False (`--no-<name>` always exists). `read` turns a text into the field's type where the type
    alone does not say how. `spellings` maps other projects' words for a value to ours (None = choose for me).
    `variable` is an environment variable whose value stands in for the default: for what a container image or a
    cluster's secret sets, and a command line should not have to repeat or show.
    """

    help: str
    aliases: tuple[str, ...] = ()
    negations: tuple[str, ...] = ()
    metavar: str = ""
    read: Callable[[str], Any] | None = None
    spellings: Mapping[str, str | None] = field(default_factory=dict)
    variable: str = ""


def count(text: str) -> int:
    """A number of tokens: `4096`, `32k` = 32,000, `32K` = 32,768 and `1.5m` = 1,500,000, as vLLM reads them."""
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)([kKmMgG]?)", text.strip().replace("_", ""))
    if match is None:
        raise BadValue("expected a number, such as 4096, 32k (32,000) or 32K (32,768)")
    units = BINARY if match[2].isupper() else DECIMAL
    value = float(match[1]) * units[match[2].lower()]
    if value != int(value):
        raise BadValue("expected a whole number")
    return int(value)


def size(text: str) -> int:
    """A number of bytes: `1073741824`, `4GiB`, `4g` and `512MB`; every unit is a power of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower().replace("_", ""))
    if match is None:
        raise BadValue("expected a size, such as 4GiB, 512m or a number of bytes")
    return int(float(match[1]) * BINARY[match[2]])


def integer(text: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise BadValue("expected a whole number") from None


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadValue("expected a number")
    return value


def boolean(text: str) -> bool:
    words = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }
    try:
        return words[text.lower()]
    except KeyError:
        raise BadValue("expected true or false") from None


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadValue(f"expected a JSON object, but {error.msg.lower()} at character {error.pos}") from None
    if not isinstance(value, dict):
        raise BadValue('expected a JSON object, such as {"key": 1}')
    return value
