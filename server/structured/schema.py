"""A JSON Schema as the client wrote it, checked and rewritten so that the grammar compiler enforces all of it.

xgrammar reads one of `$ref`, `const`, `enum`, `anyOf`, `oneOf`, `allOf` and `type` in a schema and drops what stands
beside it; it drops `pattern` beside `format`, lengths beside either, `multipleOf` beside a bound, names that are
required but not described, and more. So it gets a schema in which each part is one reference, one enumeration, one
`anyOf`, or one type with keywords that it enforces together; what cannot be said that way is refused by name.

The rewritten schema allows nothing that the original forbids. Where a schema leaves a choice that no reader needs, it
may allow less: members come in the order of `properties`; an object that describes its members has no others unless
`additionalProperties` says so, and none if it describes more than 200; strings with a pattern, a format or a length,
and names of additional members, have no character that JSON escapes; a keyword that speaks of one type implies that
type where none is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias
from urllib.parse import unquote

import msgspec

from ..limits import LimitOptions
from . import disjoint, emission, keywords
from .conjunction import Absorber, Choice, Conjunction, Located, as_schema, at, text
from .errors import ConstraintError, Unsatisfiable
from .productivity import check_productive
from .regex import Matcher

Rewritten: TypeAlias = dict[str, Any]
FREE_WORK = 5_000  # steps that any schema may take
WORK_PER_PART = 4
MAX_INLINE = 40  # schemas inside one another before a definition is made of the next one
MAX_CHOICES = 16
COMBINING = frozenset({"anyOf", "oneOf", "allOf", "$ref"})


def check_schema(schema: Any, path: str, limits: LimitOptions) -> Rewritten:
    """The schema to compile. Its `$defs` hold what it refers to.

    Raises `ConstraintError`, whose path begins with `path`, for what cannot be enforced, what nothing satisfies, and
    what exceeds the limits.
    """
    root = as_schema(schema, path)
    parts = check_size(schema, path, limits)
    return Rewriter(root, limits, FREE_WORK + WORK_PER_PART * parts).rewrite()


def check_size(schema: Any, path: str, limits: LimitOptions) -> int:
    """The number of parts, after depth, bytes and parts were found within their limits.

    Without recursion: nothing is known about `schema` yet.
    """
    level = [schema]
    depth = parts = 0
    while level:
        depth += 1
        if depth > limits.max_schema_depth:
            raise ConstraintError(
                path,
                f"is nested deeper than this server allows, {limits.max_schema_depth} (--max-schema-depth)",
            )
        below: list[Any] = []
        for part in level:
            below += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        parts += len(below)
        if parts > limits.max_schema_parts:
            raise ConstraintError(
                path,
                f"has more parts than this server allows, {limits.max_schema_parts} (--max-schema-parts)",
            )
        level = below
    size = len(msgspec.json.encode(schema))
    if size > limits.max_schema_bytes:
        raise ConstraintError(
            path, f"has {size} bytes, this server allows {limits.max_schema_bytes} (--max-schema-bytes)"
        )
    return parts


class Rewriter:
    """One schema and the definitions that it needs. `budget` is the work that it may take."""

    def __init__(self, root: Located, limits: LimitOptions, budget: int) -> None:
        self._root = root
        self.limits = limits
        self.matcher = Matcher(root.path)
        self._budget = budget
        self._absorber = Absorber(root, self._resolve, self._spend)
        self._shared: set[int] = set()  # schemas that a reference points at
        self._open: set[tuple[int, ...]] = set()  # what is being built in its place
        self._names: dict[tuple[int, ...], str] = {}  # schemas that hold together -> their definition
        self._waiting: list[tuple[str, tuple[Located, ...]]] = []

    def rewrite(self) -> Rewritten:
        top = self.build((self._root,))
        definitions: dict[str, Rewritten] = {}
        # A definition is built after what mentions it, so that chains of references cost no recursion.
        while self._waiting:
            name, parts = self._waiting.pop()
            definitions[name] = self._built(parts)
        check_productive(top, definitions, self._root.path)
        return {**top, "$defs": definitions} if definitions else top

    def build(self, parts: tuple[Located, ...]) -> Rewritten:
        """The schema of what satisfies all of `parts`. Raises `Unsatisfiable` if nothing does."""
        targets = {target.key: target for target in map(self._target, parts) if target.schema is not True}
        if not targets:
            return {}
        key = tuple(sorted(targets))
        name = self._names.get(key)
        inline = not self._shared & targets.keys() and key not in self._open and len(self._open) < MAX_INLINE
        if name is None and inline:
            self._open.add(key)
            try:
                return self._built(tuple(targets.values()))
            finally:
                self._open.discard(key)
        if name is None:
            name = self._names[key] = f"d{len(self._names)}"
            self._waiting.append((name, tuple(targets.values())))
        return {"$ref": f"#/$defs/{name}"}

    def together(self, parts: Iterable[Located]) -> Conjunction:
        """What `parts` demand, for a look at it."""
        parts = tuple(parts)
        conjunction = Conjunction(parts[0].path if parts else self._root.path)
        for part in parts:
            self._absorber.add(conjunction, part)
        return conjunction

    def _built(self, parts: tuple[Located, ...]) -> Rewritten:
        return self._emit(self.together(parts), 0)

    def _emit(self, conjunction: Conjunction, depth: int) -> Rewritten:
        self._spend(conjunction.path)
        if not conjunction.choices:
            return emission.written(conjunction, self)
        choice = conjunction.choices[0]
        if depth + len(conjunction.choices) > MAX_CHOICES:
            raise ConstraintError(choice.path, f"more than {MAX_CHOICES} of anyOf and oneOf are combined")
        alone = len(conjunction.choices) == 1 and conjunction.said <= COMBINING
        branches: list[Rewritten] = []
        failure: Unsatisfiable | None = None
        if choice.exclusive:
            disjoint.check_exclusive(
                choice, [self._with(conjunction, choice, one) for one in choice.options], self
            )
        for option in choice.options:
            try:
                if alone:
                    branch = self.build((option,))
                else:
                    chosen = self._with(conjunction, choice, option)
                    branch = self._emit(chosen, depth + 1)
            except Unsatisfiable as error:
                failure = error
                continue
            branches += branch["anyOf"] if branch.keys() == {"anyOf"} else [branch]
        if not branches:
            raise Unsatisfiable(choice.path, "none of its options can be satisfied") from failure
        return one_of_them(branches)

    def _with(self, conjunction: Conjunction, choice: Choice, option: Located) -> Conjunction:
        """The conjunction once `option` was chosen."""
        chosen = conjunction.copy()
        chosen.choices = chosen.choices[1:]
        self._spend(choice.path, 1 + len(chosen.absorbed))
        self._absorber.add(chosen, option, choice.within)
        return chosen

    def _spend(self, path: str, cost: int = 1) -> None:
        """Counts work, which references and combinations can multiply beyond the schema's own size."""
        self._budget -= cost
        if self._budget < 0:
            raise ConstraintError(
                path, "the schema takes too much work: it combines or repeats too many parts"
            )

    def _target(self, part: Located) -> Located:
        """What a schema that is nothing but a reference stands for."""
        seen: set[int] = set()
        while isinstance(part.schema, dict) and "$ref" in part.schema:
            if any(keywords.standing(name) != "annotation" for name in part.schema if name != "$ref"):
                break
            if part.key in seen:
                raise ConstraintError(part.path, "refers to itself without anything in between")
            seen.add(part.key)
            self._spend(part.path)
            part = self._resolve(text(part.schema["$ref"], part.path, "$ref"), at(part.path, "$ref"))
            if isinstance(part.schema, dict):
                self._shared.add(part.key)
        return part

    def _resolve(self, reference: str, path: str) -> Located:
        """What a `$ref` points at: a JSON pointer into the same document."""
        if reference in ("#", "#/"):
            return self._root
        if not reference.startswith("#/"):
            raise ConstraintError(
                path, "only references into the same schema, such as `#/$defs/Name`, are supported"
            )
        value: Any = self._root.schema
        place = self._root.path
        for step in reference[2:].split("/"):
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value, place = value[int(name)], at(place, int(name))
            elif isinstance(value, dict) and name in value:
                value, place = value[name], at(place, name)
            else:
                raise ConstraintError(path, f"`{reference[:60]}` does not exist")
        return as_schema(value, place)


def one_of_them(branches: list[Rewritten]) -> Rewritten:
    """Any of `branches`, none of them twice."""
    distinct = list({msgspec.json.encode(branch): branch for branch in branches}.values())
    if {} in distinct:
        return {}
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}
