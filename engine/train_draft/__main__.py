"""`python -m penstock.engine.train_draft JOB.json`: train a drafting head, saying how it goes, a line at a time, on stdout.

Exit status 0, 2 with one line on stderr for what the user can mend, 130 after SIGINT or SIGTERM (a checkpoint is
written first).
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import msgspec

from ..errors import ConfigurationError
from .generate import Stopped
from .job import TrainJob
from .train import train


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=TrainJob)
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: asked.append(received))
    Path(job.work_dir).mkdir(parents=True, exist_ok=True)
    try:
        train(job, say, lambda: bool(asked))
    except Stopped:
        return 130
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or job.work_dir}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
