"""How much one request, and one client, may ask for: every bound is an option."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from .options.values import Option, size

Count: TypeAlias = Annotated[int, Meta(ge=1)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0)]


class LimitOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of requests"""

    max_request_bytes: Annotated[
        int,
        Meta(ge=1024),
        Option(
            "Largest request body; larger ones get a 413.",
            aliases=("--max-body-size",),
            read=size,
            metavar="SIZE",
        ),
    ] = 32 << 20
    max_header_bytes: Annotated[
        int,
        Meta(ge=1024),
        Option("Longest request line and headers; longer ones get a 431.", read=size, metavar="SIZE"),
    ] = 64 << 10
    header_timeout: Annotated[
        Seconds,
        Option("Seconds in which a connection must send a request's headers.", metavar="SECONDS"),
    ] = 20.0
    body_timeout: Annotated[
        Seconds,
        Option("Seconds in which a request's body must come, however large it is.", metavar="SECONDS"),
    ] = 120.0
    max_connections: Annotated[
        Count, Option("Most connections of one front-end process; more of them get a 503.")
    ] = 16384
    max_logprobs: Annotated[
        int,
        Meta(ge=0),
        Option("Most alternatives a request may ask for with logprobs or top_logprobs."),
    ] = 20
    max_n: Annotated[Count, Option("Most choices (`n`) one request may ask for.")] = 128
    max_prompts: Annotated[Count, Option("Most prompts or texts in one request.")] = 2048
    max_messages: Annotated[Count, Option("Most messages in one conversation.")] = 10_000
    max_tools: Annotated[Count, Option("Most tools one request may bring.")] = 1024
    max_stop_strings: Annotated[Count, Option("Most `stop` strings of one request.")] = 32
    max_stop_chars: Annotated[Count, Option("Longest `stop` string.", metavar="CHARS")] = 256
    max_stop_token_ids: Annotated[Count, Option("Most `stop_token_ids` of one request.")] = 1024
    max_logit_bias: Annotated[Count, Option("Most `logit_bias` entries of one request.")] = 1024
    max_allowed_token_ids: Annotated[Count, Option("Most `allowed_token_ids` of one request.")] = 16384
    max_bad_words: Annotated[Count, Option("Most `bad_words` of one request.")] = 256
    max_bad_word_chars: Annotated[Count, Option("Longest of the `bad_words`.", metavar="CHARS")] = 256
    max_repetition_pattern: Annotated[
        Count, Option("Longest pattern that `repetition_detection` may look for.", metavar="TOKENS")
    ] = 256
    max_template_variables: Annotated[Count, Option("Most `chat_template_kwargs` of one request.")] = 64
    template_timeout: Annotated[
        Seconds,
        Option("Seconds in which the chat template must have rendered a conversation.", metavar="SECONDS"),
    ] = 5.0
    max_template_bytes: Annotated[
        int,
        Meta(ge=1024),
        Option("Longest prompt text that a chat template may make.", read=size, metavar="SIZE"),
    ] = 64 << 20
    max_schema_bytes: Annotated[
        int,
        Meta(ge=64),
        Option("Largest JSON Schema of a constraint or a tool.", read=size, metavar="SIZE"),
    ] = 512 << 10
    max_schema_depth: Annotated[
        int,
        Meta(ge=4, le=100),
        Option("Deepest nesting of objects and lists in a JSON Schema or a structural tag."),
    ] = 64
    max_schema_parts: Annotated[
        Count,
        Option("Most values in a JSON Schema or a structural tag, at all levels together."),
    ] = 20_000
    max_choices: Annotated[
        Count, Option("Most values of one `enum`, and most texts of a choice, that an output may have.")
    ] = 1024
    max_regex_length: Annotated[
        Count, Option("Longest regular expression in a constraint.", metavar="CHARS")
    ] = 4096
    max_grammar_bytes: Annotated[
        int,
        Meta(ge=64),
        Option("Largest grammar in a constraint.", read=size, metavar="SIZE"),
    ] = 128 << 10
