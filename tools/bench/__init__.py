"""Benchmarks of parts that need no server."""
