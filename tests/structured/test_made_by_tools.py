"""Schemas as pydantic and zod write them are accepted, allow what their model allows, and nothing else."""

from __future__ import annotations

import datetime
import enum
import ipaddress
import json
import random
import uuid
from typing import Annotated, Any, Literal

import pydantic
import pytest
from grammar_walk import accepts, compile_schema, problem, rewritten, walk
from pydantic import BaseModel, Field, TypeAdapter


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=0, le=9)] = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool


class Node(BaseModel):
    name: str
    children: list[Node] = []


class Everything(BaseModel):
    """A bit of all that pydantic has."""

    text: Annotated[str, Field(min_length=1, max_length=20, description="some text")]
    slug: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=12)]
    maybe: int | None = None
    either: int | str | list[float]
    colour: Colour
    level: Level = Level.LOW
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    pets: Annotated[list[Cat | Dog], Field(max_length=2)]
    pair: tuple[int, str]
    many: tuple[bool, ...] = ()
    scores: dict[str, float]
    by_colour: dict[Colour, int]
    by_code: dict[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], bool] = {}
    price: Annotated[float, Field(gt=0, lt=10)]
    even: Annotated[int, Field(multiple_of=2)]
    at: datetime.datetime
    day: datetime.date
    time: datetime.time
    identity: uuid.UUID
    link: pydantic.AnyUrl | None
    address: ipaddress.IPv4Address
    six: ipaddress.IPv6Address
    secret: pydantic.SecretStr
    path: pydantic.FilePath | None = None
    tree: Node
    anything: Any = None
    constant: Literal["x", 3, None, True] = "x"


class Closed(BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    first: str
    inner: Cat


class Open(BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    first: str


MODELS = [Everything, Closed, Open, Node, Cat | Dog, list[Closed], dict[str, Node], Colour, int | None]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_what_a_pydantic_schema_allows_the_model_takes(model: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(model)
    schema = adapter.json_schema()
    compiled = compile_schema(rewritten(schema))
    for seed in range(10):
        text = walk(compiled, random.Random(seed), max_tokens=3000)
        if text is None:
            continue
        assert problem(schema, text) is None
        if model is not Everything:  # which has a file that would have to exist
            adapter.validate_json(text)


def test_a_whole_instance_of_the_model_is_allowed() -> None:
    value = {
        "text": "some text", "slug": "a_1", "maybe": None, "either": [1.5], "colour": "red", "level": 2,
        "pet": {"kind": "dog", "good": True}, "pets": [{"kind": "cat", "lives": 3}], "pair": [1, "x"],
        "many": [True, False], "scores": {"a": 1, "b c": 2.5e3}, "by_colour": {"red": 1}, "by_code": {"DE": True},
        "price": 9.99, "even": -4, "at": "2024-02-29T12:30:59.5+01:00", "day": "2023-12-31", "time": "23:59:59Z",
        "identity": "123e4567-e89b-42d3-a456-426614174000", "link": "https://example.org/a?b=c#d",
        "address": "192.168.0.1", "six": "fe80::1", "secret": "s", "path": None,
        "tree": {"name": "a", "children": [{"name": "b", "children": []}]}, "anything": {"x": [1]}, "constant": 3,
    }  # fmt: skip
    compiled = compile_schema(rewritten(Everything.model_json_schema()))
    for indent in (None, 2):
        assert accepts(compiled, json.dumps(value, indent=indent)) is (indent is None)
    for name, wrong in {
        "slug": "A", "either": None, "colour": "blue", "pet": {"kind": "bird"}, "pair": [1], "by_colour": {"blue": 1},
        "price": 10, "even": 3, "at": "2023-02-29T00:00:00Z", "day": "2023-04-31", "address": "010.1.1.1",
        "six": "1::2::3", "identity": "x", "text": "", "tree": {}, "by_code": {"de": True},
    }.items():  # fmt: skip
        assert not accepts(compiled, json.dumps({**value, name: wrong})), name


ZOD = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "id": {
            "type": "string",
            "format": "uuid",
            "pattern": "^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}|"
            "00000000-0000-0000-0000-000000000000|ffffffff-ffff-ffff-ffff-ffffffffffff)$",
        },
        "mail": {
            "type": "string",
            "format": "email",
            "pattern": r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
        },
        "n": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
        "u": {"oneOf": [{"type": "object", "properties": {"t": {"type": "string", "const": name}}, "required": ["t"]}
                        for name in ("a", "b")]},
        "r": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "number"}},
        "o": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["id", "mail", "n", "u", "r", "o"],
    "additionalProperties": False,
}  # fmt: skip


def test_what_a_zod_schema_allows_validates() -> None:
    compiled = compile_schema(rewritten(ZOD))
    texts = [text for seed in range(20) if (text := walk(compiled, random.Random(seed), 1500)) is not None]
    assert len(texts) >= 10
    assert not [reason for text in texts if (reason := problem(ZOD, text))]


def test_order_of_members_is_that_of_the_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"z": {"type": "null"}, "a": {"type": "null"}},
        "required": ["a", "z"],
    }
    compiled = compile_schema(rewritten(schema))
    assert accepts(compiled, '{"z":null,"a":null}')
    assert not accepts(compiled, '{"a":null,"z":null}')
