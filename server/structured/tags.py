"""Structural tags of clients: each node of a known kind, each schema and pattern in it one that is enforced."""

from __future__ import annotations

from typing import Any

from ..limits import LimitOptions
from ..parsing.interface import TagFormat
from . import regex
from .char_sets import ANY
from .conjunction import at
from .errors import ConstraintError, Unsatisfiable
from .regex_reader import read_regex
from .schema import check_schema, check_size

# type -> (fields that hold a node, fields that hold a list of nodes, other fields)
NODES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "const_string": ((), (), ("value",)),
    "json_schema": ((), (), ("json_schema", "style", "max_whitespace_cnt")),
    "qwen_xml_parameter": ((), (), ("json_schema",)),
    "any_text": ((), (), ("excludes", "max_tokens", "max_chars")),
    "any_tokens": ((), (), ("exclude_tokens", "max_tokens")),
    "token": ((), (), ("token",)),
    "exclude_token": ((), (), ("exclude_tokens",)),
    "grammar": ((), (), ("grammar",)),
    "regex": ((), (), ("pattern",)),
    "sequence": ((), ("elements",), ()),
    "or": ((), ("elements",), ()),
    "tag": (("content",), (), ("begin", "end")),
    "triggered_tags": ((), ("tags",), ("triggers", "at_least_one", "stop_after_first", "excludes")),
    "token_triggered_tags": (
        (),
        ("tags",),
        ("trigger_tokens", "exclude_tokens", "at_least_one", "stop_after_first"),
    ),
    "tags_with_separator": ((), ("tags",), ("separator", "at_least_one", "stop_after_first")),
    "optional": (("content",), (), ()),
    "plus": (("content",), (), ()),
    "star": (("content",), (), ()),
    "repeat": (("content",), (), ("min", "max")),
}


def check_tag(format: Any, path: str, limits: LimitOptions) -> TagFormat:
    """The node to compile: as the client wrote it, schemas and patterns rewritten. Raises `ConstraintError`.

    What is wrong with the fields of a known node is left to the compiler, which says it before anything is generated.
    """
    check_size(format, path, limits)
    return _node(format, path, limits)


def _node(node: Any, path: str, limits: LimitOptions) -> TagFormat:
    """As deep as the limit of the depth allows."""
    if not isinstance(node, dict):
        raise ConstraintError(path, "must be an object with a `type`")
    kind = node.get("type")
    if not isinstance(kind, str) or kind not in NODES:
        raise ConstraintError(at(path, "type"), f"must be one of {', '.join(NODES)}")
    single, several, others = NODES[kind]
    for name in node:
        if name not in (*single, *several, *others, "type"):
            raise ConstraintError(at(path, name), f"is not a field of `{kind}` that can be enforced")
    checked = dict(node)
    for name in single:
        checked[name] = _node(node.get(name), at(path, name), limits)
    for name in several:
        place = at(path, name)
        elements = node.get(name)
        if not isinstance(elements, list) or not elements:
            raise ConstraintError(place, "must be a list that is not empty")
        checked[name] = [_node(element, at(place, index), limits) for index, element in enumerate(elements)]
    if "json_schema" in others:
        checked["json_schema"] = check_schema(node.get("json_schema"), at(path, "json_schema"), limits)
    elif kind == "regex":
        checked["pattern"] = check_regex(node.get("pattern"), at(path, "pattern"), limits)
    elif kind == "grammar":
        checked["grammar"] = check_grammar_text(node.get("grammar"), at(path, "grammar"), limits)
    return checked


def legacy_tag(structures: Any, triggers: Any, path: str) -> TagFormat:
    """The shape of the first version: free text in which each trigger begins one of the structures."""
    place = at(path, "structures")
    if not isinstance(structures, list) or not structures:
        raise ConstraintError(place, "must be a list that is not empty")
    if not isinstance(triggers, list) or not triggers or not all(isinstance(one, str) for one in triggers):
        raise ConstraintError(at(path, "triggers"), "must be a list of texts that is not empty")
    tags: list[TagFormat] = []
    for index, structure in enumerate(structures):
        if not isinstance(structure, dict) or structure.keys() != {"begin", "schema", "end"}:
            raise ConstraintError(at(place, index), "must be an object of `begin`, `schema` and `end`")
        content = {"type": "json_schema", "json_schema": structure["schema"]}
        tags.append({"type": "tag", "begin": structure["begin"], "content": content, "end": structure["end"]})
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags}


def check_regex(pattern: Any, path: str, limits: LimitOptions) -> str:
    """The regular expression to compile; it has to match the whole text."""
    if not isinstance(pattern, str):
        raise ConstraintError(path, "must be a text")
    if len(pattern) > limits.max_regex_length:
        raise ConstraintError(
            path,
            f"{len(pattern)} characters are more than this server allows, {limits.max_regex_length} "
            "(--max-regex-length)",
        )
    node = regex.within(read_regex(pattern, path, search=False), ANY)
    if node is None:
        raise Unsatisfiable(path, "matches no text at all")
    return regex.written(node)


def check_grammar_text(grammar: Any, path: str, limits: LimitOptions) -> str:
    """A grammar within its limit; the compiler says what is wrong with it."""
    if not isinstance(grammar, str) or not grammar.strip():
        raise ConstraintError(path, "must be a text that is not empty")
    size = len(grammar.encode("utf-8", "replace"))
    if size > limits.max_grammar_bytes:
        raise ConstraintError(
            path,
            f"{size} bytes are more than this server allows, {limits.max_grammar_bytes} (--max-grammar-bytes)",
        )
    return grammar
