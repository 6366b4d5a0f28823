"""`GET /openapi.json`: the HTTP surface as OpenAPI 3.1, made from the Structs that decode the requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..frontend_config import FrontEndConfig
from .caller import speaks_anthropic, speaks_tgi
from .errors import TGI_STATUS
from .shapes import NULL, REF, Schema, any_of, object_of, ref
from .surface import EITHER, JSON, OPERATIONS, SOME, Operation, Query, described, fields_of

PATH_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
STATUSES = {
    "400": "The request cannot be served as it is: the error names the field.",
    "401": "No valid API key.",
    "404": "There is no such model or object.",
    "408": "The request did not come within its time.",
    "413": "The body is too large.",
    "422": "The request cannot be served as it is: the error names the field.",
    "429": "The queue is full: see Retry-After.",
    "431": "The headers are too large.",
    "500": "The server failed.",
    "503": "The server cannot take requests now: see Retry-After.",
}
STRING: Schema = {"type": "string"}
ERRORS: dict[str, Schema] = {
    "Error": object_of(
        "error",
        error=object_of(
            *("message", "type", "param", "code"),
            message=STRING,
            type=STRING,
            param={"type": ["string", "null"]},
            code={"type": "integer"},
        ),
    ),
    "AnthropicError": object_of(
        *("type", "error", "request_id"),
        type={"const": "error"},
        error=object_of("type", "message", type=STRING, message=STRING),
        request_id=STRING,
    ),
    "TGIError": object_of("error", "error_type", error=STRING, error_type=STRING),
    # What /health and /ready say where they do not say 200.
    "Condition": object_of("status", status=STRING, reason=STRING, detail=STRING),
}
PROBES = ("/health", "/ready")


class Description:
    """Made when it is first asked for, and kept as bytes."""

    def __init__(self, version: str, config: FrontEndConfig) -> None:
        self._version = version
        self._config = config
        self._bytes = b""

    async def get(self, request: Request) -> Response:
        if not self._bytes:
            self._bytes = await asyncio.to_thread(self._make)
        return Response(self._bytes, media_type=JSON)

    def _make(self) -> bytes:
        config = self._config
        return msgspec.json.encode(
            openapi(OPERATIONS, self._version, root_path=config.root_path, models=config.served_model_names)
        )


def openapi(
    operations: Sequence[Operation], version: str, *, root_path: str = "", models: Sequence[str] = ()
) -> dict[str, Any]:
    """The description of these operations.

    `root_path` is where a proxy shows them; `models` are the names that are served, none if that is not known.
    """
    structs = described(operations)
    _, schemas = msgspec.json.schema_components(structs, ref_template=REF)
    for struct in structs:
        describe(schemas[struct.__name__], struct, models)
    paths: dict[str, Any] = {}
    for operation in operations:
        path = PATH_PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = describe_operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": version},
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": {
            "schemas": {**schemas, **ERRORS},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "other": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def describe(schema: Schema, struct: type[msgspec.Struct], models: Sequence[str]) -> None:
    """Fields that are refused are no part of what may be sent; the others get their shape and their note."""
    properties: Schema = schema["properties"]
    for field in fields_of(struct):
        if field.status == "refused":
            del properties[field.name]
            continue
        known = properties[field.name] if field.shape is None else field.shape.schema
        note = field.note if field.status != "ignored" else f"Has no effect. {field.note}"
        properties[field.name] = {**known, "description": note}
    if models and "model" in properties:
        properties["model"] = {"enum": list(models), "description": properties["model"]["description"]}
    choices = [any_of(one_without(*pair), one_without(*reversed(pair))) for pair in EITHER.get(struct, ())]
    if choices:
        schema["allOf"] = choices
    if struct in SOME:
        schema["anyOf"] = [object_of(name, **{name: {"not": NULL}}) for name in SOME[struct]]


def one_without(name: str, other: str) -> Schema:
    return object_of(name, **{name: {"not": NULL}, other: NULL})


def describe_operation(operation: Operation) -> dict[str, Any]:
    about: dict[str, Any] = {
        "operationId": operation_id(operation),
        "summary": operation.summary,
        "responses": {
            "200": {"description": "The answer.", "content": content(operation.answers, {})},
            **{
                status: {
                    "description": STATUSES[status],
                    "content": content((JSON,), error_schema(operation)),
                }
                for status in statuses(operation)
            },
        },
        "security": [] if operation.open else [{"key": []}, {"other": []}],
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in PATH_PARAMETER.findall(operation.path)
    ]
    parameters += [describe_query(query) for query in operation.query]
    if parameters:
        about["parameters"] = parameters
    if operation.bodies:
        about["requestBody"] = {
            "required": True,
            "content": content((JSON,), one_of([ref(body) for body in operation.bodies])),
        }
    return about


def operation_id(operation: Operation) -> str:
    words = re.findall(r"[a-zA-Z0-9]+", PATH_PARAMETER.sub(r"\1", operation.path))
    return "_".join([operation.method.lower(), *words])


def statuses(operation: Operation) -> list[str]:
    """The errors that this operation may end with; those of all connections (408, 431) among them."""
    found = {"408", "431", "500", "503"}
    if not operation.open:
        found.add("401")
    if operation.bodies:
        found |= {"400", "404", "413", "429"}
        if speaks_tgi({"path": operation.path}):
            found.add(str(TGI_STATUS[400]))
    if PATH_PARAMETER.search(operation.path):
        found |= {"400", "404"}
    if operation.path == "/health_generate":
        found.add("429")
    return sorted(found)


def error_schema(operation: Operation) -> Schema:
    """The error of the API whose path it is; `/generate` is two APIs."""
    scope = {"path": operation.path}
    if operation.path in PROBES:
        return ref_to("Condition")
    if speaks_anthropic(scope):
        return ref_to("AnthropicError")
    if speaks_tgi(scope):
        # The gate answers in TGI's form before the body is known; SGLang's bodies get OpenAI's.
        return any_of(ref_to("TGIError"), ref_to("Error"))
    return ref_to("Error")


def ref_to(name: str) -> Schema:
    return {"$ref": REF.format(name=name)}


def describe_query(query: Query) -> dict[str, Any]:
    schema = dict(STRING)
    if query.values:
        schema["enum"] = list(query.values)
    elif query.range is not None:
        schema = {"type": "integer", "minimum": query.range[0], "maximum": query.range[1]}
    return {"name": query.name, "in": "query", "required": False, "description": query.note, "schema": schema}


def one_of(schemas: list[Schema]) -> Schema:
    return schemas[0] if len(schemas) == 1 else any_of(*schemas)


def content(types: Sequence[str], schema: Schema) -> dict[str, Any]:
    return {name: {"schema": schema} for name in types}
