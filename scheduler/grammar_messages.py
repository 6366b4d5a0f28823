"""What front ends and the grammar process say to each other: may this grammar be used, and the verdict.

The grammar process connects a DEALER of identity `grammar:<incarnation>` to every front end's ROUTER, as engines do,
and greets with a `GrammarGreeting` whenever a connection is made. Ids of checks are chosen by the front end, unique for
its lifetime. Everything else about sockets and decoding is as in `messages.py`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from .messages import GrammarSpec

# `unavailable` is not about the grammar: come back later.
Outcome: TypeAlias = Literal["ok", "refused", "timeout", "memory", "crash", "unavailable"]


class GrammarConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything the grammar process is told at its start; the supervisor writes it as JSON."""

    incarnation: int = 0  # new at every start; 0 = the process takes the time
    frontends: list[str] = []  # ZMQ endpoints of the front ends, index = front end id
    model_dir: str
    hf_overrides: dict[str, Any] = {}
    tokenizer_dir: str
    compile_timeout_s: float = 10.0
    compile_memory_bytes: int = 1 << 30
    log_level: str = "info"


class CheckGrammar(Struct, frozen=True, tag="check"):
    """Is this grammar sound, and does compiling it end in bounds? Answered by one `GrammarVerdict`."""

    check_id: int
    spec: GrammarSpec


class ForgetChecks(Struct, frozen=True, tag="forget"):
    """Nobody waits for these verdicts any more."""

    check_ids: list[int]


ToGrammar: TypeAlias = CheckGrammar | ForgetChecks


class GrammarGreeting(Struct, frozen=True, tag="greeting"):
    """From now on checks may be sent to this incarnation. Those sent to an earlier one are lost."""

    incarnation: int


class GrammarVerdict(Struct, frozen=True, tag="verdict", kw_only=True, omit_defaults=True):
    """`message` is one line for the client unless the outcome is `ok`.

    `seconds` is what compiling took; None if this verdict was known already, or is told to another check as well.
    """

    check_id: int
    outcome: Outcome
    message: str = ""
    seconds: float | None = None
    retry_after_s: float = 0.0  # of `unavailable`


FromGrammar: TypeAlias = GrammarGreeting | GrammarVerdict

encoder = msgspec.msgpack.Encoder()
decode_to_grammar = msgspec.msgpack.Decoder(ToGrammar).decode
decode_from_grammar = msgspec.msgpack.Decoder(FromGrammar).decode


def encode_grammar(message: ToGrammar | FromGrammar) -> bytes:
    """Msgpack bytes of one message, tag included."""
    return encoder.encode(message)
