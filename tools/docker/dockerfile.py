"""What a Dockerfile says, and which files a .dockerignore lets into its context; as much of both as ours uses."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Instruction:
    """`flags` are the --name=value words before the rest; several of one name are kept in order."""

    name: str
    flags: tuple[tuple[str, str], ...]
    text: str
    line: int

    def words(self) -> list[str]:
        """The arguments: of a JSON list, or split as a shell does."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return shlex.split(self.text)


@dataclass
class Stage:
    """From one FROM to the next. `base` may name an earlier stage."""

    base: str
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)


@dataclass
class Dockerfile:
    arguments: dict[str, str]  # ARGs before the first FROM
    stages: list[Stage]


def parse(text: str) -> Dockerfile:
    """Raises ValueError with the line for an instruction before the first FROM that may not be there."""
    found = Dockerfile({}, [])
    for instruction in instructions(text):
        words = instruction.words() if instruction.name in ("FROM", "ARG") else []
        if instruction.name == "FROM":
            name = words[2] if len(words) == 3 and words[1].upper() == "AS" else None
            found.stages.append(Stage(words[0], name))
        elif found.stages:
            found.stages[-1].instructions.append(instruction)
        elif instruction.name == "ARG":
            name, _, value = words[0].partition("=")
            found.arguments[name] = value
        else:
            raise ValueError(f"line {instruction.line}: {instruction.name} before FROM")
    return found


def instructions(text: str) -> Iterable[Instruction]:
    """Lines joined at backslashes, comments left out (inside of an instruction too)."""
    parts: list[str] = []
    began = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not parts):
            continue
        began = began if parts else number
        more = line.rstrip().endswith("\\")
        parts.append(line.rstrip().removesuffix("\\") if more else line)
        if more:
            continue
        name, _, rest = "".join(parts).strip().partition(" ")
        parts = []
        flags = []
        rest = rest.strip()
        while match := re.match(r"--([\w-]+)=(\S+)\s+", rest):
            flags.append((match[1], match[2]))
            rest = rest[match.end() :]
        yield Instruction(name.upper(), tuple(flags), rest, began)


def substitute(text: str, values: Mapping[str, str]) -> str:
    """$NAME and ${NAME} as Docker replaces them outside of RUN; what has no value is empty."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: values.get(match[1] or match[2], ""), text)


# ------------------------------------------------------------------------------------------------------ .dockerignore


def context_files(root: Path, ignore: str) -> list[PurePosixPath]:
    """The files below `root` that `ignore` (the text of a .dockerignore) leaves in the context, in order."""
    rules = [line.strip() for line in ignore.splitlines() if line.strip() and not line.startswith("#")]
    patterns = [(pattern(rule.removeprefix("!")), rule.startswith("!")) for rule in rules]
    found = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if not path.is_dir() and kept(name.as_posix(), patterns):
            found.append(PurePosixPath(name))
    return found


def pattern(rule: str) -> re.Pattern[str]:
    """A rule also matches everything below a folder that it matches."""
    parts = []
    for piece in re.findall(r"\*\*/?|\*|\?|[^*?]+", rule.strip("/")):
        if piece.startswith("**"):
            parts.append("(?:.*/)?" if piece.endswith("/") else ".*")
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece)))
    return re.compile("".join(parts) + "(?:/.*)?")


def kept(name: str, patterns: list[tuple[re.Pattern[str], bool]]) -> bool:
    """The last rule that matches decides."""
    verdict = True
    for matcher, included in patterns:
        if matcher.fullmatch(name):
            verdict = included
    return verdict
