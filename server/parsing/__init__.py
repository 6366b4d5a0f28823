"""The text of a model's answer, taken apart: reasoning, content and tool calls, as it streams."""
