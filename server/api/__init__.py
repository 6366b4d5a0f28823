"""The HTTP API: one module per endpoint, and what endpoints share."""
