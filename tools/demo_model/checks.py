"""Is a reply right?"""

from __future__ import annotations

import json
import re
from typing import Any

from .text.dialogue import Check

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
LEAST_STORY_WORDS = 40


def passes(check: Check, reply: str) -> bool:
    """Whether `reply` (without its end token) satisfies `check`."""
    reply = " ".join(reply.split())
    if check.mode == "exact":
        return any(reply.casefold() == " ".join(want.split()).casefold() for want in check.want)
    if check.mode == "json":
        return bool(_parsed(reply) == json.loads(check.want[0]))
    if check.mode == "calls":
        return bool([_parsed(call) for call in _CALL.findall(reply)] == json.loads(check.want[0]))
    if check.mode == "any":
        return any(_said(want, reply) for want in check.want)
    long_enough = check.mode != "story" or len(reply.split()) >= LEAST_STORY_WORDS
    avoided = not any(_said(word, reply) for word in check.avoid)
    return long_enough and avoided and all(_said(want, reply) for want in check.want)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _said(want: str, reply: str) -> bool:
    """Whether `want` stands in `reply` as whole words; at its end if `want` ends with a dollar sign."""
    at_end = want.endswith("$")
    pattern = re.escape(want.rstrip("$"))
    before = r"(?<!\w)" if want[0].isalnum() else ""
    after = r"\.?$" if at_end else (r"(?!\w)" if want[-1].isalnum() else "")
    return re.search(before + pattern + after, reply, re.IGNORECASE) is not None
