"""Make the demonstration model from nothing: text and tokenizer, training, export, score.

`python -m tools.demo_model.make --steps 3996` in the repository root trains as long as for what ships.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SHIPPED = ROOT / "server" / "demo_model"


def run(module: str, *arguments: object) -> None:
    """Run one of this folder's modules as a program; its failure ends the making."""
    command = [sys.executable, "-m", f"tools.demo_model.{module}", *map(str, arguments)]
    print("$ " + " ".join(command[1:]), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def main() -> None:
    """The whole way, or with --resume the rest of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int)
    length.add_argument("--minutes", type=float)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "demo_model")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    run(
        "train",
        *(("--steps", args.steps) if args.steps else ("--minutes", args.minutes)),
        *("--work", args.work, "--out", args.out, "--seed", args.seed, "--threads", args.threads),
        *(("--resume",) if args.resume else ()),
    )
    cards = [card for card in (HERE / "README.md", args.out / "README.md") if card.exists()]
    run("score", args.out, "--threads", args.threads, "--write", *cards)


if __name__ == "__main__":
    main()
