"""Tools around the container image."""
