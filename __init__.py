"""Penstock: one program that turns a GPU box into an OpenAI-compatible LLM endpoint."""

__version__ = "0.1.0"
