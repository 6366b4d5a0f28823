"""How Penstock's own clients speak to an OpenAI-compatible server."""
