"""The options: how they are described, read from the command line and YAML, checked together, and shown."""
