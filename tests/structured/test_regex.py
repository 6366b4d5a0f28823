"""A regular expression written anew for the compiler allows what the original means, and nothing else."""

from __future__ import annotations

import itertools
import random
import re
import unicodedata

import pytest
from grammar_walk import accepts, compile_schema, compiler
from penstock.server.structured import char_sets, regex
from penstock.server.structured.errors import ConstraintError, Unsatisfiable
from penstock.server.structured.regex_reader import SHORTHANDS, read_regex

TEXTS = ["".join(letters) for size in range(6) for letters in itertools.product("ab", repeat=size)]


def pattern(rng: random.Random, depth: int = 0) -> str:
    """Of a's and b's."""
    kind = rng.random() * (0.3 if depth > 3 else 1)
    if kind < 0.3:
        return rng.choice(["a", "b", "[ab]", ".", "[^a]", r"\w", "(?:)"])
    if kind < 0.55:
        return "".join(pattern(rng, depth + 1) for _ in range(rng.randint(0, 3)))
    if kind < 0.75:
        return "(" + "|".join(pattern(rng, depth + 1) for _ in range(rng.randint(1, 3))) + ")"
    return (
        "(?:"
        + pattern(rng, depth + 1)
        + ")"
        + rng.choice(["*", "+", "?", "{2}", "{1,2}", "{2,}", "*?", "{0,2}"])
    )


@pytest.mark.parametrize("chunk", range(4))
def test_random_patterns_mean_what_they_mean_elsewhere(chunk: int) -> None:
    for seed in range(chunk * 60, (chunk + 1) * 60):
        text = pattern(random.Random(seed))
        node = read_regex(text, "p", search=False)
        written = regex.written(node)
        in_string = compile_schema({"type": "string", "pattern": written})
        alone = compiler().compile_regex(written)
        for sample in TEXTS:
            expected = re.fullmatch(text, sample) is not None
            assert regex.Matcher("p").matches(node, sample) is expected, (text, sample)
            assert accepts(in_string, f'"{sample}"') is expected, (text, sample)
            assert accepts(alone, sample) is expected, (text, sample)


SEARCHED = ["^a", "b$", "^a|b$", "a", "^a$", "^$", "^(a|b)+$|^c", ".", "a.c"]


@pytest.mark.parametrize("text", SEARCHED)
def test_patterns_of_schemas_allow_nothing_that_a_search_would_not_find(text: str) -> None:
    compiled = compile_schema(
        {"type": "string", "pattern": regex.written(read_regex(text, "p", search=True))}
    )
    samples = ["".join(letters) for size in range(4) for letters in itertools.product("abc", repeat=size)]
    allowed = [sample for sample in samples if accepts(compiled, f'"{sample}"')]
    assert allowed
    assert all(re.search(text, sample) for sample in allowed)
    if text.startswith("^") != text.endswith("$") and "|" not in text:  # open at one end
        assert len(allowed) == sum(re.search(text, sample) is not None for sample in samples)


@pytest.mark.parametrize("kind", "dws")
def test_shorthands_mean_the_same_to_python_and_to_ecmascript(kind: str) -> None:
    spaces = "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(
        map(chr, range(0x2000, 0x200B))
    )
    ecma = {
        "d": lambda char: char in "0123456789",
        "w": lambda char: char.isascii() and (char.isalnum() or char == "_"),
        "s": lambda char: char in spaces,
    }[kind]
    surely, surely_not = SHORTHANDS[kind][0], SHORTHANDS[kind.upper()][0]
    python = re.compile("\\" + kind)
    for code in range(0x20000):
        if 0xD800 <= code < 0xE000:
            continue
        both = bool(python.match(chr(code))), ecma(chr(code))
        if char_sets.contains(surely, code):
            assert both == (True, True), unicodedata.name(chr(code), hex(code))
        if char_sets.contains(surely_not, code):
            assert both == (False, False), unicodedata.name(chr(code), hex(code))


def test_every_printable_character_stands_for_itself_in_and_out_of_sets() -> None:
    plain = [chr(code) for code in range(32, 127) if chr(code) not in '"\\'] + ["é", "中", "😀"]
    for char in plain:
        for text in (re.escape(char) if char.isascii() else char, f"[{re.escape(char)}]"):
            compiled = compile_schema(
                {"type": "string", "pattern": regex.written(read_regex(text, "p", search=False))}
            )
            assert [other for other in plain if accepts(compiled, f'"{other}"')] == [char], text


def test_sets_that_begin_with_a_caret_or_hold_a_dash_are_written_right() -> None:
    for text, members in {
        r"[\^-`]": "^_`",
        r"[\^]": "^",
        "[a^]": "a^",
        "[+\\--/]": "+-./",
        "[\\]x-]": "]x-",
    }.items():
        compiled = compiler().compile_regex(regex.written(read_regex(text, "p", search=False)))
        assert {chr(code) for code in range(32, 127) if accepts(compiled, chr(code))} == set(members), text


def test_control_characters_quotes_and_backslashes_never_come_inside_strings() -> None:
    node = regex.for_json_string(read_regex(r"[\s\S]", "p", search=False), "p")
    compiled = compile_schema({"type": "string", "pattern": regex.written(node)})
    allowed = {code for code in range(128) if accepts(compiled, f'"{chr(code)}"')}
    assert allowed == {*range(32, 128)} - {34, 92}
    with pytest.raises(Unsatisfiable):
        regex.for_json_string(read_regex('a"b', "p", search=False), "p")


def test_names_are_told_from_all_others() -> None:
    names = ["a", "ab", "b", "", "é", "a" * 40]
    compiled = compile_schema({"type": "string", "pattern": regex.written(regex.other_than(names))})
    for name in names:
        assert not accepts(compiled, f'"{name}"')
    for other in ("aa", "abc", "c", "éa", "ba", "a" * 20, "é" * 30):
        assert accepts(compiled, f'"{other}"'), other


@pytest.mark.parametrize(
    "text",
    ["(", "a)", "[", "[]", "a**", "*", "a{2,1}", "a{9999999}", "\\", "(?i)a", "(?<=a)b", "\\q", "[b-a]"],
)
def test_what_is_no_regular_expression_is_refused(text: str) -> None:
    with pytest.raises(ConstraintError):
        read_regex(text, "p", search=True)


def test_hostile_nesting_and_counts_are_bounded() -> None:
    with pytest.raises(ConstraintError, match="nested"):
        read_regex("(" * 5000 + ")" * 5000, "p", search=True)
    node = read_regex("((((a?){100000}){100000}){100000}b)?", "p", search=True)
    assert not regex.Matcher("p").matches(node, "a" * 60)
    assert regex.Matcher("p").matches(node, "a" * 60 + "b")
    with pytest.raises(ConstraintError, match="too long"):
        regex.Matcher("p").matches(node, "a" * 3000)
