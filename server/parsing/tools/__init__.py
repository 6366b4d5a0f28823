"""The formats in which models write tool calls: one file each, and one line in `registry.py`."""
