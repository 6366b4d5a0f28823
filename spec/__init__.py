"""Drafters: what proposes tokens for the model to verify, and how many are worth it."""
