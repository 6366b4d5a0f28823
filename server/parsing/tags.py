"""Free text in structural tags (the nodes are xgrammar's), beside the nodes that tool-call formats are made of."""

from __future__ import annotations

from collections.abc import Sequence

from .interface import TagFormat

FREE_TEXT = ("any_text", "triggered_tags", "dispatch")


def any_text(excludes: Sequence[str] = (), max_tokens: int | None = None) -> TagFormat:
    """Text without any of `excludes`, of at most `max_tokens` tokens."""
    found: TagFormat = {"type": "any_text", "excludes": list(excludes)}
    return found if max_tokens is None else {**found, "max_tokens": max_tokens}


def without(tag: TagFormat, words: Sequence[str]) -> TagFormat:
    """`tag` whose free text has none of `words`: there the grammar would take a marker for a part of the answer."""
    if tag["type"] in FREE_TEXT:
        return {**tag, "excludes": [*tag.get("excludes", []), *words]}
    if "elements" in tag:
        return {**tag, "elements": [without(element, words) for element in tag["elements"]]}
    return tag
