"""What fields hold whose Structs do not say it, because they are decoded or checked later: as JSON Schema and in words."""

from __future__ import annotations

from typing import Any, TypeAlias

from msgspec import Struct

from .messages.protocol import (
    ClientTool,
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
    OutputFormat,
    TextBlock,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from .pooling.protocol import ClassifyRequest, Document, EmbeddingRequest, RerankRequest, ScoreRequest
from .protocol import (
    MAX_TOKEN,
    ChatRequest,
    CompletionRequest,
    FunctionCall,
    FunctionDefinition,
    GenerationRequest,
    Message,
    StructuredOutputs,
    TokenizeRequest,
    Tool,
)
from .responses.protocol import (
    FunctionCallItem,
    FunctionCallOutputItem,
    FunctionTool,
    MessageItem,
    ReasoningItem,
    ResponsesRequest,
    TextConfig,
)
from .sglang.protocol import SamplingFields, SGLangRequest
from .tgi.protocol import Grammar

Schema: TypeAlias = dict[str, Any]

REF = "#/components/schemas/{name}"


class Shape(Struct, frozen=True):
    """`schema` may refer to `parts`."""

    words: str
    schema: Schema
    parts: tuple[type[Struct], ...] = ()


def ref(struct: type[Struct]) -> Schema:
    return {"$ref": REF.format(name=struct.__name__)}


def any_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def list_of(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items, **({"minItems": least} if least else {})}


def object_of(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def typed(name: str, struct: type[Struct]) -> Schema:
    """An object of this Struct with the `type` that tells it from others."""
    return {"allOf": [ref(struct), object_of("type", type={"const": name})]}


def turn(role: str, content: Schema) -> Schema:
    """A message of Anthropic's."""
    return {"allOf": [ref(InputMessage), object_of(role={"const": role}, content=content)]}


def or_null(shape: Shape) -> Shape:
    return Shape(shape.words, any_of(shape.schema, NULL), shape.parts)


NULL: Schema = {"type": "null"}
STRING: Schema = {"type": "string"}
NOT_EMPTY: Schema = {"type": "string", "minLength": 1}
TOKEN: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN}
OBJECT: Schema = {"type": "object"}
JSON_TEXT: Schema = {
    "type": "string",
    "contentMediaType": "application/json",
    "contentSchema": OBJECT,
}
TEXT_PART = object_of("type", "text", type={"enum": ["text", "input_text", "output_text"]}, text=STRING)
REFUSAL_PART = object_of("type", "refusal", type={"const": "refusal"}, refusal=STRING)
PARTS = list_of(any_of(TEXT_PART, REFUSAL_PART))

PROMPTS = Shape(
    "text, list of texts, token ids, or list of those",
    any_of(NOT_EMPTY, list_of(NOT_EMPTY, 1), list_of(TOKEN, 1), list_of(list_of(TOKEN, 1), 1)),
)
TOKENS = Shape("token ids, or list of those", any_of(list_of(TOKEN, 1), list_of(list_of(TOKEN, 1), 1)))
TEXT_OR_PARTS = Shape(
    "text, or list of parts of type `text`, `input_text`, `output_text` or `refusal`", any_of(STRING, PARTS)
)
ARGUMENTS = Shape("text of a JSON object, or the object", any_of(JSON_TEXT, OBJECT))

SAID = {"allOf": [ref(Message), object_of("content", content=any_of(STRING, PARTS))]}
CALLED = {"allOf": [ref(Message), object_of("role", role={"const": "assistant"})]}
MESSAGES = Shape("list of Message (not empty)", list_of(any_of(SAID, CALLED), 1), (Message,))
TOOLS = Shape("list of Tool (not empty)", list_of(ref(Tool), 1), (Tool,))
DOCUMENTS = Shape("list of objects", list_of(OBJECT))

NAMED = object_of("name", name=NOT_EMPTY)
NAMED_TOOL = object_of("type", "function", type={"const": "function"}, function=NAMED)
WORD: Schema = {"enum": ["none", "auto", "required"]}
MODE: Schema = {"enum": ["auto", "required"]}
TOOL_CHOICE = Shape(
    "`none`, `auto`, `required`, `{type: function, function: {name}}` or `{type: allowed_tools, allowed_tools: "
    "{mode, tools}}`",
    any_of(
        WORD,
        NAMED_TOOL,
        object_of(
            "type",
            "allowed_tools",
            type={"const": "allowed_tools"},
            allowed_tools=object_of("mode", "tools", mode=MODE, tools=list_of(NAMED_TOOL, 1)),
        ),
    ),
)
FLAT_TOOL = object_of("type", "name", type={"const": "function"}, name=NOT_EMPTY)
FLAT_TOOL_CHOICE = Shape(
    "`none`, `auto`, `required`, `{type: function, name}` or `{type: allowed_tools, mode, tools}`",
    any_of(
        WORD,
        FLAT_TOOL,
        object_of(
            "type", "mode", "tools", type={"const": "allowed_tools"}, mode=MODE, tools=list_of(FLAT_TOOL, 1)
        ),
    ),
)

JSON_SCHEMA: Schema = {
    "description": "A JSON Schema.",
    **any_of(
        OBJECT,
        {"type": "boolean"},
        {"type": "string", "contentMediaType": "application/json", "description": "Its text."},
    ),
}
SCHEMA = Shape("JSON Schema, or its text", JSON_SCHEMA)
SCHEMA_OBJECT = Shape("JSON Schema", {**OBJECT, "description": "A JSON Schema."})
TAG = Shape(
    "structural tag, or its text",
    any_of(
        object_of("format", type={"const": "structural_tag"}, format=OBJECT),
        object_of("structures", "triggers", structures=list_of(OBJECT), triggers=list_of(STRING)),
        {"type": "string", "contentMediaType": "application/json"},
    ),
)
NAMED_SCHEMA = object_of("schema", name=STRING, description=STRING, schema=OBJECT, strict={"type": "boolean"})
RESPONSE_FORMAT = Shape(
    "`{type: text}`, `{type: json_object}`, `{type: json_schema, json_schema: {name, schema}}` or "
    "`{type: structural_tag, format}`",
    any_of(
        object_of("type", type={"enum": ["text", "json_object"]}),
        object_of("type", "json_schema", type={"const": "json_schema"}, json_schema=NAMED_SCHEMA),
        object_of("type", "format", type={"const": "structural_tag"}, format=OBJECT),
    ),
)
TEXT_FORMAT = Shape(
    "`{type: text}`, `{type: json_object}` or `{type: json_schema, name, schema}`",
    any_of(
        object_of("type", type={"enum": ["text", "json_object"]}),
        object_of("type", "schema", type={"const": "json_schema"}, name=STRING, schema=OBJECT),
    ),
)

BLOCKS = (TextBlock, ThinkingBlock, ToolUseBlock, ToolResultBlock)
READ_BLOCKS = any_of(typed("text", TextBlock), typed("tool_reference", ToolReferenceBlock))
SYSTEM = Shape("text, or list of TextBlock", any_of(STRING, list_of(typed("text", TextBlock))), (TextBlock,))
OF_USER = any_of(typed("text", TextBlock), typed("tool_result", ToolResultBlock))
OF_ASSISTANT = any_of(
    typed("text", TextBlock), typed("thinking", ThinkingBlock), typed("tool_use", ToolUseBlock)
)
TURN = Shape(
    "text, or list of TextBlock, ToolResultBlock (user), ThinkingBlock, ToolUseBlock (assistant)",
    any_of(STRING, list_of(any_of(*OF_USER["anyOf"], *OF_ASSISTANT["anyOf"][1:]))),
    BLOCKS,
)
TURNS = Shape(
    "list of InputMessage (not empty)",
    list_of(
        any_of(
            turn("user", any_of(STRING, list_of(OF_USER))),
            turn("assistant", any_of(STRING, list_of(OF_ASSISTANT))),
            turn("system", any_of(STRING, list_of(typed("text", TextBlock)))),
        ),
        1,
    ),
    (InputMessage,),
)
RESULT = Shape(
    "text, or list of TextBlock and ToolReferenceBlock",
    any_of(STRING, list_of(READ_BLOCKS)),
    (TextBlock, ToolReferenceBlock),
)
CLIENT_TOOLS = Shape("list of ClientTool", list_of(ref(ClientTool)), (ClientTool,))

ITEMS = (MessageItem, FunctionCallItem, FunctionCallOutputItem, ReasoningItem)
INPUT = Shape(
    "text, or list of MessageItem, FunctionCallItem, FunctionCallOutputItem and ReasoningItem",
    any_of(
        NOT_EMPTY,
        list_of(
            any_of(
                ref(MessageItem),
                typed("function_call", FunctionCallItem),
                typed("function_call_output", FunctionCallOutputItem),
                typed("reasoning", ReasoningItem),
            ),
            1,
        ),
    ),
    ITEMS,
)
THOUGHTS = Shape(
    "list of parts of type `reasoning_text`",
    list_of(object_of("type", "text", type={"const": "reasoning_text"}, text=STRING)),
)
FUNCTION_TOOLS = Shape("list of FunctionTool", list_of(typed("function", FunctionTool)), (FunctionTool,))
GRAMMAR_VALUE = Shape(
    "JSON Schema, regular expression, or `{name, schema}`, as `type` says", any_of(STRING, OBJECT)
)

LOGIT_BIAS = Shape(
    "object from token ids to numbers (≥ -100, ≤ 100)",
    {
        "type": "object",
        "patternProperties": {"^[0-9]{1,9}$": {"type": "number", "minimum": -100, "maximum": 100}},
        "additionalProperties": False,
    },
)
ONE_OR_MORE = Shape("text, or list of text (not empty)", any_of(STRING, list_of(STRING, 1)))
RANKED = Shape("list of text or Document (not empty)", list_of(any_of(STRING, ref(Document)), 1), (Document,))

GENERATION = {
    "logit_bias": or_null(LOGIT_BIAS),
    "response_format": or_null(RESPONSE_FORMAT),
    "guided_json": or_null(SCHEMA),
    "json_schema": or_null(SCHEMA),
    "structural_tag": or_null(TAG),
}

SHAPES: dict[tuple[type[Struct], str], Shape] = {
    **{
        (struct, name): shape
        for struct in (GenerationRequest, ChatRequest, CompletionRequest, ResponsesRequest)
        for name, shape in GENERATION.items()
    },
    (StructuredOutputs, "json"): or_null(SCHEMA),
    (StructuredOutputs, "structural_tag"): or_null(TAG),
    (CompletionRequest, "prompt"): PROMPTS,
    (ChatRequest, "messages"): MESSAGES,
    (ChatRequest, "tools"): or_null(TOOLS),
    (ChatRequest, "tool_choice"): or_null(TOOL_CHOICE),
    (ChatRequest, "documents"): or_null(DOCUMENTS),
    (Message, "content"): or_null(TEXT_OR_PARTS),
    (FunctionCall, "arguments"): ARGUMENTS,
    (FunctionDefinition, "parameters"): or_null(SCHEMA_OBJECT),
    (TokenizeRequest, "messages"): or_null(MESSAGES),
    (TokenizeRequest, "tools"): or_null(TOOLS),
    (InputMessage, "content"): TURN,
    (ToolResultBlock, "content"): or_null(RESULT),
    (ClientTool, "input_schema"): SCHEMA_OBJECT,
    (OutputFormat, "schema"): SCHEMA_OBJECT,
    **{
        (struct, name): or_null(shape)
        for struct in (CountTokensRequest, MessagesRequest)
        for name, shape in {"system": SYSTEM, "tools": CLIENT_TOOLS}.items()
    },
    (CountTokensRequest, "messages"): TURNS,
    (MessagesRequest, "messages"): TURNS,
    (ResponsesRequest, "input"): INPUT,
    (ResponsesRequest, "tools"): or_null(FUNCTION_TOOLS),
    (ResponsesRequest, "tool_choice"): or_null(FLAT_TOOL_CHOICE),
    (MessageItem, "content"): TEXT_OR_PARTS,
    (FunctionCallItem, "arguments"): Shape("text of a JSON object", JSON_TEXT),
    (FunctionCallOutputItem, "output"): TEXT_OR_PARTS,
    (ReasoningItem, "content"): or_null(THOUGHTS),
    (FunctionTool, "parameters"): or_null(SCHEMA_OBJECT),
    (TextConfig, "format"): or_null(TEXT_FORMAT),
    (EmbeddingRequest, "input"): PROMPTS,
    (ClassifyRequest, "input"): PROMPTS,
    (RerankRequest, "documents"): RANKED,
    **{(ScoreRequest, name): or_null(ONE_OR_MORE) for name in ("text_1", "text_2", "queries", "documents")},
    (SamplingFields, "logit_bias"): or_null(LOGIT_BIAS),
    (SGLangRequest, "text"): or_null(ONE_OR_MORE),
    (SGLangRequest, "input_ids"): or_null(TOKENS),
    (Grammar, "value"): GRAMMAR_VALUE,
}
