"""How the options are shown: `penstock serve --help` and the reference page docs/options.md.

`python -m penstock.server.options.reference > docs/options.md` writes the page.
"""

from __future__ import annotations

import json
import shutil
import textwrap
import typing
from typing import Any

import msgspec

from ..config import ServeConfig
from .parse import Field, fields, metavar

INDENT = 28


def headings() -> dict[str, str]:
    """Group -> its heading."""
    return {name: kind.__doc__ or name for name, kind in typing.get_type_hints(ServeConfig).items()}


def spellings(field: Field) -> list[str]:
    """The flags to show, ours first; for a bool that is on, the flag that turns it off."""
    aliases = list(field.option.aliases)
    if field.kind != "bool":
        return [field.flag, *aliases]
    opposite = f"--no-{field.flag[2:]}"
    if field.default:
        return [opposite, *field.option.negations]
    return [field.flag, *aliases]


def default_text(field: Field) -> str:
    """The default as one would type it; empty where the help says in words what happens."""
    value = field.default
    if value is None or value == [] or value == {} or value == "":
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if field.option.metavar == "SIZE":
        return f"{value >> 20}MiB"
    if isinstance(value, msgspec.Struct | dict | list):
        return json.dumps(msgspec.to_builtins(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def help_text(width: int | None = None) -> str:
    """The whole of `penstock serve --help`."""
    width = width or min(110, shutil.get_terminal_size().columns)
    lines = [
        "usage: penstock serve [MODEL] [options]",
        "",
        *textwrap.wrap(
            "Serve MODEL, a local directory or a Hugging Face id, behind an OpenAI-compatible API. "
            "Without MODEL, serve the small demonstration model that is part of the package.",
            width,
        ),
        "",
        "  -h, --help                Show this.",
        "  --config FILE             YAML file with options: long flag names as keys. Flags win over it.",
    ]
    for group, heading in headings().items():
        lines += ["", f"{heading}:"]
        for field in fields():
            if field.group == group:
                lines += entry(field, width)
    return "\n".join(lines) + "\n"


def entry(field: Field, width: int) -> list[str]:
    """The lines of one option: flags on the left, what it does on the right."""
    flags = ", ".join(spellings(field))
    placeholder = metavar(field) + (" ..." if field.kind == "list" else "")
    left = f"  {flags} {placeholder}".rstrip()
    sentence = field.option.help
    default = default_text(field)
    if field.kind == "bool" and field.default:
        sentence = f"Turn off (it is on by default): {sentence[0].lower()}{sentence[1:]}"
    elif field.option.variable:
        sentence += f" Default: ${field.option.variable}{f', else {default}' if default else ''}."
    elif default and field.kind != "bool":
        sentence = f"{sentence} Default: {default}."
    right = textwrap.wrap(sentence, max(30, width - INDENT))
    if len(left) < INDENT:
        return [left.ljust(INDENT) + right[0], *(" " * INDENT + line for line in right[1:])]
    return [left, *(" " * INDENT + line for line in right)]


PAGE_HEAD = """\
# Options of `penstock serve`

This page is generated from `server/config.py` by `python -m penstock.server.options.reference > docs/options.md`.

    penstock serve [MODEL] [options]

An option comes from the command line, else from the YAML file given with `--config`, else it has its default, for which
two options have an environment variable.
Keys of the file are the long flag names (with `-` or `_`), at the top or below the name of their group:

```yaml
model: Qwen/Qwen3-0.6B
max-model-len: 32k
server:
  port: 8080
  api-key: [first, second]
```

Anything unknown, out of range or contradictory ends the command with one line on stderr and exit status 2.
Numbers of tokens read `32k` as 32,000 and `32K` as 32,768; sizes read `4GiB`, `4g` and `4GB` alike as powers of 1024.
A list takes several words (`MODEL --served-model-name a b`), a repeated flag, or a JSON list.
"""


def values_text(field: Field) -> str:
    """What may be given, for the reference page."""
    if field.choices:
        return ", ".join(f"`{choice}`" for choice in field.choices)
    names: dict[str, str] = {
        "bool": "on / off",
        "int": "whole number",
        "float": "number",
        "text": "text",
        "list": "list of text",
        "object": "JSON object",
    }
    text = "size" if field.option.metavar == "SIZE" else names[field.kind]
    meta = field.meta
    if meta is None:
        return text
    least: Any = meta.ge if meta.ge is not None else meta.gt
    below = "≥" if meta.ge is not None else ">"
    if field.option.metavar == "SIZE":
        return text
    bounds = f"{below} {least}" + (f", ≤ {meta.le}" if meta.le is not None and meta.le < 2**62 else "")
    return f"{text} {bounds}"


def page() -> str:
    """The whole of docs/options.md."""
    parts = [PAGE_HEAD]
    for group, heading in headings().items():
        parts.append(f"\n## {heading} (`{group}`)\n\n")
        parts.append("| option | value | default | what it does | also spelled |\n|---|---|---|---|---|\n")
        for field in fields():
            if field.group != group:
                continue
            default = default_text(field)
            does = field.option.help.replace("|", "\\|")
            if field.option.variable:
                does += f" `${field.option.variable}` stands in for the default."
            others = [*field.option.aliases]
            if field.kind == "bool":
                others += [f"--no-{field.flag[2:]}", *field.option.negations]
            others += [f"value {theirs}" for theirs in field.option.spellings if theirs not in field.choices]
            cells = [
                f"`{field.flag}`",
                values_text(field),
                f"`{default}`" if default else "",
                does,
                ", ".join(f"`{other.removeprefix('value ')}`" for other in others),
            ]
            parts.append(f"| {' | '.join(cells)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
