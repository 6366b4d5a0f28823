"""The keywords of JSON Schema: which are enforced, which constrain nothing, which cannot be enforced.

The table covers the vocabularies of draft 2020-12, the spellings of older drafts, and what OpenAPI adds.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Standing: TypeAlias = Literal["enforced", "annotation", "refused"]

STRING = frozenset({"minLength", "maxLength", "pattern", "format"})
NUMBER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
ARRAY = frozenset(
    {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "unevaluatedItems"}
)
OBJECT = frozenset(
    {
        *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
        *("minProperties", "maxProperties", "unevaluatedProperties"),
    }
)
# Which types a keyword speaks of; the others speak of all.
SPEAKS_OF: dict[str, str] = {
    **dict.fromkeys(STRING, "string"),
    **dict.fromkeys(NUMBER, "number"),
    **dict.fromkeys(ARRAY, "array"),
    **dict.fromkeys(OBJECT, "object"),
}
ENFORCED = (
    STRING
    | NUMBER
    | ARRAY
    | OBJECT
    | {"type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "nullable"}
)
ANNOTATIONS = frozenset(
    {
        # draft 2020-12: meta-data, content, and what identifies or holds schemas
        *("title", "description", "default", "deprecated", "readOnly", "writeOnly", "examples"),
        *("contentEncoding", "contentMediaType", "contentSchema"),
        *("$schema", "$id", "$comment", "$vocabulary", "$anchor", "$dynamicAnchor", "$defs", "definitions"),
        # older drafts
        *("id", "$recursiveAnchor"),
        # OpenAPI, and hints of tools that write schemas
        *(
            "example",
            "discriminator",
            "xml",
            "externalDocs",
            "enumNames",
            "markdownDescription",
            "errorMessage",
        ),
        *("propertyOrdering", "strict"),
        # no effect by themselves: their partners are refused
        *("minContains", "maxContains", "then", "else"),
    }
)
REFUSED: dict[str, str] = {
    "not": "what must not be cannot be enforced: say what may be",
    "if": "conditions cannot be enforced: use anyOf with one schema per case",
    "contains": "cannot be enforced: use items, or prefixItems",
    "dependentRequired": "cannot be enforced: use anyOf with one schema per case",
    "dependentSchemas": "cannot be enforced: use anyOf with one schema per case",
    "dependencies": "cannot be enforced: use anyOf with one schema per case",
    "$dynamicRef": "is not supported: use $ref",
    "$recursiveRef": "is not supported: use $ref",
}


def standing(keyword: str) -> Standing:
    if keyword in ENFORCED:
        return "enforced"
    return "annotation" if keyword in ANNOTATIONS or keyword.startswith("x-") else "refused"
