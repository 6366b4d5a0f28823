"""From what the user typed to a checked `ServeConfig`: command line, YAML file, precedence, errors, contradictions.

Everything is derived from the tree in `config.py`; nothing is listed twice. Precedence: flag, file, environment
variable (of the few options that have one), default.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..config import ServeConfig
from .contradictions import contradictions
from .foreign import advice
from .values import BadValue, Option, boolean, integer, json_object, number

Kind = Literal["bool", "list", "object", "text", "int", "float", "choice"]
READERS: dict[Kind, Callable[[str], Any]] = {
    "bool": boolean,
    "object": json_object,
    "text": str,
    "choice": str,
    "int": integer,
    "float": number,
}
SECRETS = {"api_key", "hf_token"}  # their values are not repeated in errors


class OptionError(Exception):
    """What the user asked for cannot be; the message is one line with the option, the value and the way out."""


class HelpWanted(Exception):
    """The user asked for the help."""


@dataclass(frozen=True)
class Field:
    """One option: where it lives in the tree, its type and its description."""

    group: str
    name: str
    type: Any  # without the Option; msgspec checks values against it
    kind: Kind
    optional: bool  # None is a value ("choose for me")
    choices: tuple[str, ...]
    meta: Meta | None
    option: Option
    default: Any

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def switches(self) -> Iterator[tuple[str, bool]]:
        """(name with dashes, value when present) of every flag that stands for this option; False = it negates."""
        names = [self.name.replace("_", "-"), *(alias.lstrip("-") for alias in self.option.aliases)]
        for name in names:
            yield name, True
            if self.kind == "bool":
                yield f"no-{name}", False
        for name in self.option.negations:
            yield name.lstrip("-"), False


@functools.cache
def fields() -> tuple[Field, ...]:
    """Every option of the tree, in order."""
    found = []
    for group, group_type in typing.get_type_hints(ServeConfig).items():
        hints = typing.get_type_hints(group_type, include_extras=True)
        defaults = group_type()
        for name, hint in hints.items():
            inner, *notes = typing.get_args(hint)
            (option,) = (note for note in notes if isinstance(note, Option))
            metas = [note for note in notes if isinstance(note, Meta)]
            found.append(describe(group, name, inner, metas, option, getattr(defaults, name)))
    return tuple(found)


def describe(group: str, name: str, hint: Any, metas: list[Meta], option: Option, default: Any) -> Field:
    """A `Field` from its annotation taken apart."""
    checked = typing.Annotated[hint, metas[0]] if metas else hint
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not type(None))
        optional = True
    if typing.get_origin(hint) is typing.Annotated:
        hint, *notes = typing.get_args(hint)
        metas = [note for note in notes if isinstance(note, Meta)]
    origin = typing.get_origin(hint)
    kinds: dict[Any, Kind] = {
        bool: "bool",
        int: "int",
        float: "float",
        str: "text",
        list: "list",
        dict: "object",
    }
    choices: tuple[str, ...] = ()
    kind: Kind
    if origin is Literal:
        kind, choices = "choice", typing.get_args(hint)
    elif isinstance(hint, type) and issubclass(hint, Struct):
        kind = "object"
    else:
        kind = kinds[origin or hint]
    meta = metas[0] if metas else None
    return Field(group, name, checked, kind, optional, choices, meta, option, default)


@functools.cache
def by_switch() -> Mapping[str, tuple[Field, bool]]:
    """Every flag, without its leading dashes -> its option, and False where the flag negates."""
    return {name: (field, positive) for field in fields() for name, positive in field.switches()}


# --------------------------------------------------------------------------------------------------- one value


def shown(value: Any) -> str:
    """A value as part of an error line: short, on one line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(text.split()) or "''"
    return text if len(text) <= 60 else text[:57] + "..."


def value_of(field: Field, raw: Any, place: str) -> Any:
    """`raw` (text of the command line, or a YAML value) as a checked value of the option; `place` names it in errors."""
    label = place if field.name in SECRETS else f"{place} {shown(raw)}"
    try:
        value = read(field, raw)
    except BadValue as error:
        raise OptionError(f"{label}: {error}") from None
    try:
        return msgspec.convert(value, field.type, strict=True)
    except msgspec.ValidationError as error:
        raise OptionError(f"{label}: {expectation(field, str(error), value)}") from None


def read(field: Field, raw: Any) -> Any:
    if raw is None:
        if field.optional:
            return None
        raise BadValue("a value is missing")
    if field.kind == "list":
        return read_list(raw, field.option.read)
    if isinstance(raw, str):
        if raw in field.option.spellings:
            return field.option.spellings[raw]
        return (field.option.read or READERS[field.kind])(raw)
    if field.kind in ("text", "choice"):
        raise BadValue("expected text: put it in quotes")
    if field.kind == "int" and str(raw) in field.option.spellings:  # -1 in a file
        return field.option.spellings[str(raw)]
    if field.kind == "float" and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    return raw


def read_list(raw: Any, each: Callable[[str], Any] | None) -> list[Any]:
    """Words, or one JSON list as vLLM takes it; `each` makes a value of a word, or of a number in a file."""
    words = raw if isinstance(raw, list) else [raw]
    if len(words) == 1 and isinstance(words[0], str) and words[0].startswith("["):
        try:
            words = json.loads(words[0])
        except json.JSONDecodeError:
            raise BadValue("expected words or a JSON list of words") from None
    if each is not None:
        return [each(str(word)) for word in words]
    if not all(isinstance(word, str) for word in words):
        raise BadValue("expected a list of words: put each in quotes")
    if not all(words):
        raise BadValue("an empty word is not allowed: give a value or leave the option out")
    return list(words)


def expectation(field: Field, complaint: str, value: Any) -> str:
    """What would have been right, from the type and its range."""
    if field.kind == "choice":
        close = difflib.get_close_matches(str(value), field.choices, 1)
        return f"choose one of {', '.join(field.choices)}" + (f" (did you mean {close[0]}?)" if close else "")
    meta = field.meta
    if field.kind in ("int", "float") and type(value) in (int, float) and meta is not None:
        least = f"more than {meta.gt:g}" if meta.gt is not None else f"at least {meta.ge}"
        return f"must be {least}" + (f" and at most {meta.le:,}" if meta.le is not None else "")
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "object": "a mapping"}
    if field.kind in names and "$" not in complaint and "field" not in complaint:
        return f"expected {names[field.kind]}"
    return complaint.replace("`", "").replace(" - at $.", " in key ")


# --------------------------------------------------------------------------------------------------- the two sources


class Settings:
    """What one source (command line or file) sets: option name -> value, and the spelling that set it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.spelled: dict[str, str] = {}
        self.last_word_of: dict[str, str] = {}  # flag that took several words -> the last of them

    def set(self, field: Field, value: Any, spelling: str) -> None:
        """The last one of a repeated spelling counts; two spellings that disagree are an error."""
        before = self.spelled.get(field.name)
        if before is not None and before != spelling and self.values[field.name] != value:
            silent = field.kind == "bool" or field.name in SECRETS
            said = spelling if silent else f"{spelling} {shown(value)}"
            raise OptionError(f"{said} contradicts {before}, both set {field.flag}: keep one of them")
        self.values[field.name] = value
        self.spelled[field.name] = spelling


def unknown(name: str, spelling: str) -> OptionError:
    """The error for an option that is not ours: known elsewhere, mistyped or foreign."""
    said = advice(name)
    if said is not None:
        return OptionError(f"{spelling} {said}")
    close = difflib.get_close_matches(name, [*by_switch(), "config"], 1, 0.6)
    dashes = "--" if spelling.startswith("-") else ""
    way_out = f"did you mean {dashes}{close[0]}?" if close else "`penstock serve --help` lists every option"
    return OptionError(f"{spelling}: unknown option; {way_out}")


def is_flag(word: str) -> bool:
    """Whether the word is a flag and not a value: it begins with two dashes, or is an alias that has but one."""
    return word.startswith("--") or word.partition("=")[0] in short_flags()


@functools.cache
def short_flags() -> frozenset[str]:
    return frozenset(
        alias for field in fields() for alias in field.option.aliases if not alias.startswith("--")
    )


def read_command_line(arguments: Sequence[str]) -> tuple[Settings, str | None]:
    """(what the flags set, the file given with --config). Raises `HelpWanted` or `OptionError`."""
    settings = Settings()
    config_file: str | None = None
    waiting = list(reversed(arguments))
    while waiting:
        word = waiting.pop()
        if not word.startswith("-") or word == "-":
            if "model" in settings.values:
                model, before = settings.values["model"], settings.spelled["model"]
                given = f"{before} {shown(model)}" if before.startswith("-") else shown(model)
                raise OptionError(f"{shown(word)}: the model is already given as {given}: name one model")
            settings.set(by_switch()["model"][0], word, "MODEL")
            continue
        if word in ("-h", "--help"):
            raise HelpWanted
        flag, equals, attached = word.partition("=")
        name = flag.lstrip("-").replace("_", "-")
        if not is_flag(word) or name not in (*by_switch(), "config"):
            raise unknown(name, flag)
        flag = f"--{name}" if flag.startswith("--") else flag
        if name == "config":
            config_file = attached if equals else next_word(waiting, flag, "a YAML file")
            continue
        field, positive = by_switch()[name]
        if field.kind == "bool":
            value = value_of(field, attached, flag) if equals else True
            settings.set(field, value is positive, flag)
        elif field.kind == "list":
            words = [attached] if equals else []
            while not equals and waiting and not is_flag(waiting[-1]):
                words.append(waiting.pop())
            if not words:
                raise OptionError(f"{flag}: a value is missing: give one or more words")
            if len(words) > 1:
                settings.last_word_of[flag] = words[-1]
            more = value_of(field, words, flag)
            held = settings.values.get(field.name, [])
            settings.values[field.name] = [*held, *more]
            settings.spelled[field.name] = flag
        else:
            text = attached if equals else next_word(waiting, flag, metavar(field))
            settings.set(field, value_of(field, text, flag), flag)
    return settings, config_file


def next_word(waiting: list[str], flag: str, wanted: str) -> str:
    if not waiting or waiting[-1].startswith("--"):
        raise OptionError(f"{flag}: a value is missing: give {wanted}")
    return waiting.pop()


def read_file(path: str) -> Settings:
    """What a YAML file sets. Keys are long flag names with - or _, at the top or below the name of their group."""
    tree = load_yaml(path)
    settings = Settings()
    groups = {field.group for field in fields()}
    for key, value in tree.items():
        if key in groups and isinstance(value, dict):
            for inner, inner_value in value.items():
                set_from_file(settings, path, inner, inner_value, key)
        else:
            set_from_file(settings, path, key, value, None)
    return settings


def set_from_file(settings: Settings, path: str, key: Any, raw: Any, group: str | None) -> None:
    name = str(key).replace("_", "-")
    place = f"{path}: {group}.{key}" if group else f"{path}: {key}"
    if name not in by_switch():
        raise unknown(name, place)
    field, positive = by_switch()[name]
    if group is not None and field.group != group:
        raise OptionError(
            f"{place}: belongs to the group {field.group}, not {group}: move it there or to the top"
        )
    value = value_of(field, raw, f"{place}:")
    settings.set(field, value is positive if field.kind == "bool" else value, place)


def read_environment() -> dict[str, Any]:
    """The values of variables that stand in for defaults; an empty one counts as not set. Raises `OptionError`."""
    found = {}
    for field in fields():
        text = os.environ.get(field.option.variable, "")
        if text:
            found[field.name] = value_of(field, text, f"${field.option.variable}")
    return found


def load_yaml(path: str) -> dict[Any, Any]:
    import yaml  # only a server that is given a file pays for it

    class StrictSafeLoader(yaml.SafeLoader):
        """YAML without silent overwriting: a key that appears twice is an error."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if str(key_node.value) in seen:
                raise OptionError(
                    f"{path}: {key_node.value} appears twice, again in line {key_node.start_mark.line + 1}: keep one"
                )
            seen.add(str(key_node.value))
        return loader.construct_mapping(node, deep=True)

    StrictSafeLoader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        with open(path, encoding="utf-8") as stream:
            tree = yaml.load(stream, StrictSafeLoader)
    except OSError as error:
        raise OptionError(
            f"--config {path}: {(error.strerror or str(error)).lower()}: give a readable file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not text"
        raise OptionError(f"--config {path}: not valid YAML{where} ({problem}): correct it there") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise OptionError(f"--config {path}: expected `option: value` lines, found a {type(tree).__name__}")
    return tree


# --------------------------------------------------------------------------------------------------- all together


@dataclass(frozen=True)
class Parsed:
    """A checked configuration, and which options flags and file set (the others are defaults, or a variable's)."""

    config: ServeConfig
    given: frozenset[str]


def parse(arguments: Sequence[str]) -> Parsed:
    """The configuration that `penstock serve <arguments>` asks for. Raises `HelpWanted` or `OptionError`."""
    flags, config_file = read_command_line(arguments)
    values = read_file(config_file).values if config_file is not None else {}
    values = {**values, **flags.values}
    if "model" not in values:
        for flag, word in flags.last_word_of.items():
            last = "its last word" if flag == "--api-key" else shown(word)
            raise OptionError(
                f"{flag} has several values: is {last} the model? Put MODEL first, or repeat {flag} for each value"
            )
    groups: dict[str, dict[str, Any]] = {}
    together = {**read_environment(), **values}
    for field in fields():
        if field.name in together:
            groups.setdefault(field.group, {})[field.name] = together[field.name]
    types_of = typing.get_type_hints(ServeConfig)
    config = ServeConfig(**{group: types_of[group](**members) for group, members in groups.items()})
    parsed = Parsed(config, frozenset(values))
    for complaint in contradictions(config, parsed.given):
        raise OptionError(complaint)
    return parsed


def metavar(field: Field) -> str:
    """What stands for the value in the help."""
    if field.option.metavar:
        return field.option.metavar
    if field.choices:
        return "{" + ",".join(field.choices) + "}"
    return {"int": "N", "float": "X", "object": "JSON", "bool": ""}.get(field.kind, field.name.upper())
