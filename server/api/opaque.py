"""Thinking as an opaque text that a client carries back: encrypted_content of Responses, signature of Messages.

It is not secret: the client has a right to what it was answered. It keeps the thinking intact between requests where
nothing is stored, and says for thinking that is shown that nothing was hidden in it.
"""

from __future__ import annotations

import base64
import hashlib

HIDDEN = "pt1."
SHOWN = "ps1."
DIGEST_BYTES = 24


def seal(text: str) -> str:
    """`text` as an opaque text, for `unseal`."""
    return HIDDEN + base64.urlsafe_b64encode(text.encode()).decode()


def unseal(sealed: str) -> str | None:
    """What was sealed; None for anything that `seal` did not make."""
    if not sealed.startswith(HIDDEN):
        return None
    try:
        return base64.b64decode(sealed[len(HIDDEN) :], altchars=b"-_", validate=True).decode()
    except ValueError:
        return None


def mark(text: str) -> str:
    """A signature of thinking that is shown: a digest, from which nothing is read back."""
    return SHOWN + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:DIGEST_BYTES]).decode()
