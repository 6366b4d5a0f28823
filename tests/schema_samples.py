"""JSON Schemas made at random from the keywords that are enforced, alone and in combinations."""

from __future__ import annotations

import random
from typing import Any

from penstock.server.structured.formats import STRINGS

PATTERNS = [
    "^[a-z]+$",
    "^a|b$",
    "x",
    r"^\d{2,4}-\w*$",
    "^[^a]é?$",
    r"\S+",
    "^(foo|bar)[0-9]$",
    r"^\W$",
    "^.{0,100}$",
]
NAMES = ["a", "ab", "b", "é", "x y", 'q"z', "a_property_with_a_rather_long_name"]
VALUES = ["a", "b/c", 'é\n"', 1, 2.5, None, True, [1, {"a": 2}], {"x": "y"}, -7]
MAX_DEPTH = 3


class Samples:
    """Schemas from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def document(self) -> dict[str, Any]:
        """A schema with two definitions that it may refer to."""
        return {**self.schema(), "$defs": {"A": self.schema(1), "B": self.schema(1)}}

    def schema(self, depth: int = 0) -> dict[str, Any]:
        makers = [self.string, self.integer, self.number, self.plain, self.enumerated, self.reference]
        if depth <= MAX_DEPTH:
            makers += [self.array, self.object, self.object, self.choice, self.combined]
        return self._random.choice(makers)(depth + 1)

    def maybe(self, probability: float) -> bool:
        return self._random.random() < probability

    def pick(self, *options: Any) -> Any:
        return self._random.choice(options)

    def some(self, options: list[Any], fewest: int, most: int) -> list[Any]:
        return self._random.sample(options, self._random.randint(fewest, most))

    def string(self, depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string"}
        if self.maybe(0.3):
            schema["minLength"] = self.pick(0, 1, 2, 4)
        if self.maybe(0.3):
            schema["maxLength"] = self.pick(3, 5, 70)
        if self.maybe(0.25):
            schema["pattern"] = self.pick(*PATTERNS)
        elif self.maybe(0.4):
            schema["format"] = self.pick(*STRINGS)
        return schema

    def integer(self, depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "integer"}
        if self.maybe(0.4):
            schema["minimum"] = self.pick(-50, 0, 3, 0.5, -1e20)
        if self.maybe(0.4):
            schema["maximum"] = self.pick(50, 100, 77.5, 10**19)
        if self.maybe(0.2):
            schema["exclusiveMaximum"] = self.pick(20, 20.5)
        if self.maybe(0.3):
            schema["multipleOf"] = self.pick(1, 3, 7, 0.5)
        return schema

    def number(self, depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "number"}
        if self.maybe(0.4):
            schema["minimum"] = self.pick(-50, 0, 3, 0.5, 0.1, -1e20)
        if self.maybe(0.4):
            schema["maximum"] = self.pick(50, 100, 77.5, 1e19)
        if self.maybe(0.2):
            schema["exclusiveMinimum"] = self.pick(-20, 0.25)
        return schema

    def plain(self, depth: int) -> dict[str, Any]:
        several = {"type": self.some(["string", "integer", "null", "boolean", "array"], 2, 2), "maxLength": 4}
        return self.pick({"type": "boolean"}, {"type": "null"}, {}, {"minLength": 2}, several)

    def enumerated(self, depth: int) -> dict[str, Any]:
        return self.pick({"enum": self.some(VALUES, 1, 4)}, {"const": self.pick(*VALUES)})

    def reference(self, depth: int) -> dict[str, Any]:
        return {"$ref": self.pick("#/$defs/A", "#/$defs/B")}

    def array(self, depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array"}
        if self.maybe(0.7):
            schema["items"] = self.schema(depth) if self.maybe(0.9) else False
        if self.maybe(0.3):
            schema["prefixItems"] = [self.schema(depth) for _ in range(self.pick(1, 2, 3))]
        if self.maybe(0.3):
            schema["minItems"] = self.pick(0, 1, 3)
        if self.maybe(0.4):
            schema["maxItems"] = self.pick(0, 1, 4)
        if schema.get("maxItems") == 1 and self.maybe(0.3):
            schema["uniqueItems"] = True
        return schema

    def object(self, depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "object"}
        names = self.some(NAMES, 0, 4)
        if self.maybe(0.85):
            schema["properties"] = {name: self.schema(depth) for name in names}
        if self.maybe(0.6):
            schema["required"] = self.some(names, 0, len(names)) + (["zz"] if self.maybe(0.1) else [])
        if self.maybe(0.4):
            schema["additionalProperties"] = self.pick(True, False, self.schema(depth))
        if self.maybe(0.15):
            schema["patternProperties"] = {self.pick("^x_", "^a", "[0-9]$"): self.schema(depth)}
        if self.maybe(0.1):
            rules = {"pattern": "^[a-z]+$"}, {"enum": ["a", "b", "c"]}, {"maxLength": 3}
            schema["propertyNames"] = self.pick(*rules)
        if self.maybe(0.2):
            schema["minProperties"] = self.pick(0, 1, 2, 3)
        if self.maybe(0.2):
            schema["maxProperties"] = self.pick(0, 1, 2, 4)
        if self.maybe(0.05):
            schema["unevaluatedProperties"] = self.pick(False, self.schema(depth))
        return schema

    def choice(self, depth: int) -> dict[str, Any]:
        options = [self.schema(depth) for _ in range(self.pick(1, 2, 3))]
        schema: dict[str, Any] = {self.pick("anyOf", "anyOf", "oneOf"): options}
        return {**schema, **self.schema(depth)} if self.maybe(0.3) else schema

    def combined(self, depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"allOf": [self.schema(depth) for _ in range(self.pick(1, 2))]}
        return {**schema, **self.schema(depth)} if self.maybe(0.4) else schema
