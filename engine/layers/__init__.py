"""The building blocks that model families share."""
