"""What the outside world touches: HTTP, CLI, configuration, tokenisation, templates, supervision. Never torch."""
