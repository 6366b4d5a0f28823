"""Grammars: what the vocabulary means in text, compiled grammars, and the masks they put on the next token."""
