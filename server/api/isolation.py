"""Whose cached prefixes a request may share (`--prefix-cache-scope`), as the salt of its pages in the prefix cache.

How fast an answer begins tells whether its prompt was cached: where strangers share a cache, each can feel out what
the others asked. Pages with different salts never meet, so a client learns of its own requests only.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from starlette.types import Scope

from ..config import CacheScope

REQUEST_SALT = "penstock.cache_salt"
SALT_BYTES = 16
BEARER = b"bearer "


def presented_key(scope: Scope) -> bytes:
    """The API key a request came with, `Authorization: Bearer KEY` before `x-api-key: KEY`; b"" if none."""
    other = b""
    for name, value in scope["headers"]:
        if name == b"authorization" and value[: len(BEARER)].lower() == BEARER:
            key: bytes = value[len(BEARER) :].strip()
            return key
        if name == b"x-api-key":
            other = value.strip()
    return other


def tenant_of(scope: Scope) -> str:
    """A name for the key that a request came with, the same in every process, from which the key cannot be read."""
    return hashlib.sha256(presented_key(scope)).hexdigest()


class CacheIsolation:
    """Turns a request into the salt of its pages.

    A tenant is an API key; its salt is a keyed hash (HMAC-SHA256), so nobody who sees salts or block hashes learns
    keys or can test guesses of them. `secret` is the same in all front ends of a family, and new at each start; an
    empty one is drawn here. Where the server demands no keys, tenants are told apart by what they present, unchecked.
    """

    def __init__(self, cache_scope: CacheScope, secret: str) -> None:
        self._scope = cache_scope
        self._secret = secret.encode() or secrets.token_bytes(SALT_BYTES)

    def salt(self, scope: Scope, cache_salt: str | None) -> str:
        """`cache_salt` is the client's own: it divides further what the scope has divided."""
        match self._scope:
            case "global":
                return cache_salt or ""
            case "tenant":
                digest = hmac.new(self._secret, presented_key(scope), hashlib.sha256).digest()
                own = digest[:SALT_BYTES].hex()
            case "request":
                own = scope.setdefault(REQUEST_SALT, secrets.token_hex(SALT_BYTES))
        return f"{own}/{cache_salt}" if cache_salt else own
