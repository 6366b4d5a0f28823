"""One format for the log lines of every process of the family: time, level, process, message, to stderr."""

from __future__ import annotations

import logging
import sys


def set_up_logging(process: str, level: str) -> None:
    """Log to stderr as `process` (such as `engine`, `front end 0`) from `level` (debug, info, warning, error) up."""
    logging.basicConfig(
        level=level.upper(),
        format=f"%(asctime)s %(levelname)s {process}: %(message)s",
        stream=sys.stderr,
        force=True,
    )
