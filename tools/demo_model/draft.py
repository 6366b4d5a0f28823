"""Train the demonstration model's drafting heads on its own answers: an EAGLE-3 head and a next-token layer.

The questions are those of training, the measurement's are held out. Both heads read the same texts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from .make import ROOT, SHIPPED
from .text import KINDS, Dialogue, held_out_questions, training_dialogues

PACKAGE = "penstock"


def write_prompts(path: Path, dialogues: Iterable[Dialogue]) -> None:
    """A conversation a line, without its last answer."""
    with path.open("w", encoding="utf-8") as file:
        for dialogue in dialogues:
            line = {"messages": dialogue.last.messages[:-1], "tools": dialogue.last.tools or None}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def main() -> None:
    """Write the questions, then train and measure both heads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "demo_draft")
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--heads", nargs="+", choices=["eagle3", "mtp"], default=["eagle3", "mtp"])
    parser.add_argument("--prompts", type=int, default=40_000)
    parser.add_argument("--each", type=int, default=20, help="held-out questions of each kind")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=4096, help="tokens of an update")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    prompts, held_out = args.work / "prompts.jsonl", args.work / "eval.jsonl"
    write_prompts(prompts, itertools.islice(training_dialogues(f"draft {args.seed}"), args.prompts))
    write_prompts(held_out, (d for kind in KINDS for d in held_out_questions(kind, args.each, args.seed + 1)))
    for head in args.heads:
        command = [
            *(sys.executable, "-m", PACKAGE, "train-draft", head, "--model", args.model),
            *("--output", args.work / head, "--work", args.work / "run"),
            *("--from-model", prompts, "--eval", held_out, "--max-length", 1024, "--max-new-tokens", 320),
            *("--steps", args.steps, "--batch", args.batch, "--seed", args.seed, "--threads", args.threads),
            *(("--resume",) if args.resume else ()),
        ]
        print("$ " + " ".join(map(str, command[1:])), flush=True)
        subprocess.run(list(map(str, command)), check=True)


if __name__ == "__main__":
    main()
