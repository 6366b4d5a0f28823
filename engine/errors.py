"""What stops an engine before it runs, and nothing else: an error whose message is meant for the user."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """The options, the checkpoint and the machine do not go together; the message names the way out."""
