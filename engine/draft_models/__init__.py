"""Drafters that are models: EAGLE heads and the next-token layers of checkpoints."""
