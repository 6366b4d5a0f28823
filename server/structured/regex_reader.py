"""A client's regular expression, read as ECMA-262 has it, and refused where a part of it could not be enforced."""

from __future__ import annotations

from . import char_sets
from .char_sets import Ranges
from .errors import ConstraintError
from .regex import ANY_TEXT, MAX_COUNT, Chars, Node, Repeat, alternatives, one, sequence

MAX_NESTING = 40
CONTROLS = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "0": 0x00}
# letter of a shorthand -> (what surely belongs to it, what may belong to it)
SHORTHANDS: dict[str, tuple[Ranges, Ranges]] = {
    "d": (char_sets.DIGIT, char_sets.complement(char_sets.NOT_DIGIT)),
    "D": (char_sets.NOT_DIGIT, char_sets.complement(char_sets.DIGIT)),
    "w": (char_sets.WORD, char_sets.complement(char_sets.NOT_WORD)),
    "W": (char_sets.NOT_WORD, char_sets.complement(char_sets.WORD)),
    "s": (char_sets.SPACE, char_sets.complement(char_sets.NOT_SPACE)),
    "S": (char_sets.NOT_SPACE, char_sets.complement(char_sets.SPACE)),
}


def read_regex(pattern: str, path: str, *, search: bool) -> Node:
    """The texts that `pattern` matches as a whole.

    With `search` as JSON Schema has it: an alternative that names one end of the text (`^` or `$`) is open at the
    other. One that names neither has to match the whole text here too, which is within what it allows.
    Raises `ConstraintError` for what cannot be enforced.
    """
    return Reader(pattern, path).read(search)


class Reader:
    """Recursive descent, at most `MAX_NESTING` deep."""

    def __init__(self, pattern: str, path: str) -> None:
        self._text = pattern
        self._path = path
        self._at = 0

    def read(self, search: bool) -> Node:
        options: list[Node] = []
        while True:
            begins = self._take("^")
            part = self._sequence(0)
            ends = self._take("$")
            if search and begins and not ends:
                part = sequence((part, ANY_TEXT))
            elif search and ends and not begins:
                part = sequence((ANY_TEXT, part))
            options.append(part)
            if not self._take("|"):
                break
        if self._at < len(self._text):
            raise self._error("an anchor here" if self._text[self._at] in "^$" else "this")
        return alternatives(options)

    def _error(self, what: str) -> ConstraintError:
        shown = self._text[self._at : self._at + 12]
        return ConstraintError(
            self._path,
            f"{what} (`{shown}`, at character {self._at}) is not supported in a regular expression",
        )

    def _take(self, expected: str) -> bool:
        if self._text.startswith(expected, self._at):
            self._at += len(expected)
            return True
        return False

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise ConstraintError(self._path, "the regular expression ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)^$":
            parts.append(self._repeated(self._atom(depth)))
        return sequence(parts)

    def _atom(self, depth: int) -> Node:
        start = self._at
        char = self._next()
        match char:
            case "(":
                return self._group(start, depth)
            case "[":
                return Chars(self._set())
            case ".":
                return Chars(char_sets.DOT)
            case "\\":
                shorthand = self._shorthand()
                if shorthand is not None:
                    return Chars(shorthand[0])
                return one(self._escaped(in_set=False))
            case "*" | "+" | "?" | "{":
                self._at = start
                raise self._error("a repetition of nothing")
        return one(ord(char))

    def _group(self, start: int, depth: int) -> Node:
        if depth >= MAX_NESTING:
            raise ConstraintError(self._path, f"groups are nested more than {MAX_NESTING} deep")
        if self._take("?"):
            named = self._take("P<") or self._take("<")
            if named:
                name_end = self._text.find(">", self._at)
                if not self._text[self._at : name_end].isidentifier() or name_end < 0:
                    self._at = start
                    raise self._error("this group")
                self._at = name_end + 1
            elif not self._take(":"):
                self._at = start
                raise self._error("a lookaround or a flag")
        options = [self._sequence(depth + 1)]
        while self._take("|"):
            options.append(self._sequence(depth + 1))
        if not self._take(")"):
            if self._at < len(self._text):
                raise self._error("an anchor inside a group")
            raise ConstraintError(self._path, "a group of the regular expression is not closed")
        return alternatives(options)

    def _repeated(self, part: Node) -> Node:
        if self._at >= len(self._text):
            return part
        start = self._at
        match self._text[self._at]:
            case "*":
                low, high = 0, None
            case "+":
                low, high = 1, None
            case "?":
                low, high = 0, 1
            case "{":
                end = self._text.find("}", self._at)
                low, high = self._counts(self._text[self._at + 1 : end] if end > 0 else "")
                self._at = end
            case _:
                return part
        self._at += 1
        self._take("?")  # lazy or greedy, it is the same set of texts
        if self._at < len(self._text) and self._text[self._at] in "*+?{":
            self._at = start
            raise self._error("a repetition of a repetition")
        return Repeat(part, low, high)

    def _counts(self, text: str) -> tuple[int, int | None]:
        first, comma, second = text.partition(",")
        if not (first.isascii() and first.isdigit() and len(first) < 8):
            raise self._error("this repetition")
        if second and not (second.isascii() and second.isdigit() and len(second) < 8):
            raise self._error("this repetition")
        low = int(first)
        high = int(second) if second else (None if comma else low)
        if high is not None and high < low:
            raise self._error("a repetition that ends before it begins")
        if max(low, high or 0) > MAX_COUNT:
            raise self._error(f"a repetition of more than {MAX_COUNT}")
        return low, high

    def _shorthand(self) -> tuple[Ranges, Ranges] | None:
        found = SHORTHANDS.get(self._text[self._at : self._at + 1])
        if found is not None:
            self._at += 1
        return found

    def _escaped(self, *, in_set: bool) -> int:
        """The character after a backslash."""
        start = self._at - 1
        char = self._next()
        if char in "ux":
            return self._hexadecimal(start, char)
        if char == "c":
            letter = self._next()
            if letter.isascii() and letter.isalpha():
                return ord(letter) % 32
        elif char == "b" and in_set:
            return 0x08
        elif char in CONTROLS and not (char == "0" and self._text[self._at : self._at + 1].isdigit()):
            return CONTROLS[char]
        elif not char.isalnum():
            return ord(char)
        self._at = start
        raise self._error("this escape")

    def _hexadecimal(self, start: int, kind: str) -> int:
        if kind == "u" and self._take("{"):
            end = self._text.find("}", self._at)
            digits = self._text[self._at : end] if end > 0 else ""
            self._at = end + 1
        else:
            size = 4 if kind == "u" else 2
            digits = self._text[self._at : self._at + size]
            digits = digits if len(digits) == size else ""
            self._at += size
        if digits and len(digits) <= 6 and all(digit in "0123456789abcdefABCDEF" for digit in digits):
            code = int(digits, 16)
            if code <= char_sets.LAST and not 0xD800 <= code <= 0xDFFF:
                return code
        self._at = start
        raise self._error("this escape")

    def _set(self) -> Ranges:
        """The rest of `[...]`. What a negated set excludes is everything that may belong to its parts."""
        negated = self._take("^")
        if self._text.startswith("]", self._at):
            raise self._error("an empty set of characters")
        surely: list[tuple[int, int]] = []
        perhaps: list[tuple[int, int]] = []
        while not self._take("]"):
            low = self._set_part()
            if not isinstance(low, int):
                surely += low[0]
                perhaps += low[1]
                continue
            high: int | tuple[Ranges, Ranges] = low
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                high = self._set_part()
            if not isinstance(high, int) or high < low:
                raise self._error("the range before this")
            surely.append((low, high))
            perhaps.append((low, high))
        return char_sets.complement(perhaps) if negated else char_sets.union(surely)

    def _set_part(self) -> int | tuple[Ranges, Ranges]:
        char = self._next()
        if char != "\\":
            return ord(char)
        shorthand = self._shorthand()
        return self._escaped(in_set=True) if shorthand is None else shorthand
