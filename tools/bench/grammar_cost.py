"""What structured output costs: the throughput of a running server with a JSON schema against the same without.

`python -m tools.bench.grammar_cost --base-url URL` sends the same load in turns, with and without, and prints the
ratio of each pair and the median of the ratios. Every answer has the same number of tokens: with the schema because
its array never ends before, without because end-of-sequence tokens are ignored.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.com$"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        "active": {"type": "boolean"},
    },
    "required": ["name", "age", "email", "tags", "active"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 1000}


def throughput(args: argparse.Namespace, seed: int, *, constrained: bool) -> float:
    """Output tokens a second of one load."""
    body = {"structured_outputs": {"json": SCHEMA}} if constrained else {"ignore_eos": True}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "penstock", "bench", "serve", "--base-url", args.base_url]
        command += ["--num-prompts", str(args.requests), "--max-concurrency", str(args.concurrency)]
        command += ["--random-input-len", "32", "--random-output-len", str(args.tokens), "--seed", str(seed)]
        command += ["--temperature", str(args.temperature), "--no-progress", "--no-calibrate"]
        command += ["--extra-body", json.dumps(body), "--json", str(result)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        report = json.loads(result.read_text())
    expected = args.requests * args.tokens
    if report["total_output_tokens"] != expected:
        raise SystemExit(
            f"{report['total_output_tokens']} tokens came, not {expected}: the loads are not alike"
        )
    return float(report["output_throughput"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    for constrained in (False, True):  # both paths warm, the grammar compiled
        throughput(args, 0, constrained=constrained)
    ratios = []
    for number in range(1, args.rounds + 1):
        order = (False, True) if number % 2 else (True, False)
        found = {
            # Prompts of their own: the second load must not find the first one's in the prefix cache.
            constrained: throughput(args, 2 * number + constrained, constrained=constrained)
            for constrained in order
        }
        ratios.append(found[True] / found[False])
        print(f"without {found[False]:8.1f} tok/s   with {found[True]:8.1f} tok/s   ratio {ratios[-1]:.3f}")
    print(
        f"median ratio {statistics.median(ratios):.3f} (lowest {min(ratios):.3f}, highest {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
