"""The text in the parts of a message, in the spellings of both of OpenAI's chat APIs."""

from __future__ import annotations

from typing import Any

from .errors import bad_request, shown

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def part_texts(content: str | list[dict[str, Any]], path: str) -> list[str]:
    """The text of each part. Raises a 400 for a part that is no text."""
    if isinstance(content, str):
        return [content]
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type")
        field = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
        if field is None:
            raise bad_request(
                f"{path}[{index}].type", f"{shown(kind)} is not supported: this model reads text"
            )
        text = part.get(field)
        if not isinstance(text, str):
            raise bad_request(f"{path}[{index}].{field}", "expected `str`")
        texts.append(text)
    return texts
