"""What a chat template wants of a conversation beyond the common form: told from its text."""

from __future__ import annotations

import re
from dataclasses import dataclass

# DeepSeek V3 and R1 join the arguments of earlier calls to other text without asking what they are.
ARGUMENTS_JOINED = re.compile(r"""(?:\['arguments'\]|\["arguments"\]|\.arguments)\s*[+~]""")
CONTENT_NONE = re.compile(r"""(?:\['content'\]|\["content"\]|\.content) is (?:not )?none""")


@dataclass(frozen=True, slots=True)
class Dialect:
    """`call_id_length` is the only length of a tool call's id that the template takes (Mistral), if it has one."""

    developer: bool = False  # knows the role
    arguments_as_text: bool = False
    null_content: bool = False  # tells calls from answers by a content of null
    thinking: bool = False  # reads earlier thinking under this name, beside no content
    call_id_length: int | None = None

    @classmethod
    def of(cls, source: str) -> Dialect:
        """`source` is the text of the template, or of all of them."""
        length = re.search(r"IDs? should be alphanumeric strings with length (\d+)", source)
        return cls(
            developer="developer" in source,
            arguments_as_text=bool(ARGUMENTS_JOINED.search(source)) and "arguments is string" not in source,
            null_content=bool(CONTENT_NONE.search(source)),
            thinking="message.thinking" in source,
            call_id_length=None if length is None else int(length[1]),
        )
