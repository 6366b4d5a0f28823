"""What the gate notes about a request in its ASGI scope, and which API's errors its client expects."""

from __future__ import annotations

from starlette.types import Scope

REQUEST_ID = "penstock.request_id"
ANTHROPIC_PATH = "/v1/messages"
SGLANG_BODY = "penstock.sglang_body"  # set where two APIs share a path
TGI_PATHS = frozenset({"/", "/generate", "/generate_stream", "/info"})


def request_id(scope: Scope) -> str:
    return str(scope.get(REQUEST_ID, ""))


def speaks_anthropic(scope: Scope) -> bool:
    """Is this a path of Anthropic's API, whose errors have a form of their own?"""
    path = own_path(scope)
    return path == ANTHROPIC_PATH or path.startswith(ANTHROPIC_PATH + "/")


def speaks_tgi(scope: Scope) -> bool:
    """Is this a path of text-generation-inference, whose errors have another form again?"""
    return own_path(scope) in TGI_PATHS and not scope.get(SGLANG_BODY, False)


def own_path(scope: Scope) -> str:
    """The path without the prefix under which a proxy shows this server."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))
