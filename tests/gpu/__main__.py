"""`python -m tests.gpu`: is everything right on this GPU? From the root of a checkout; nothing has to be installed.

Each check runs in a process of its own, since one illegal access spoils a CUDA process for good, and within its own
time; the most valuable come first. A JSON line for each goes to --out as soon as it ends: `check`, `status` (passed,
failed, skipped), `seconds`, and what it found. Exit status 0 if none failed and one passed at least. `--device cpu` does
the same with small sizes, to try the checks themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
LIMITS_S = {  # in order of value
    "machine": 60,
    "families": 150,
    "ops": 240,
    "graphs": 120,
    "batch": 150,
    "long-context": 150,
    "fp8": 120,
    "serve": 120,
    "sliding": 120,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", default="gpu-checks.jsonl", metavar="FILE", help="JSON lines, one a check")
    parser.add_argument("--only", default="", metavar="REGEX", help="checks whose names match")
    parser.add_argument(
        "--limit", type=float, default=540.0, metavar="SECONDS", help="of all checks together"
    )
    parser.add_argument("--check", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check is not None:
        return run_here(options.check, options.device)
    began = time.monotonic()
    statuses = []
    with ExitStack() as stack, open(options.out, "w", encoding="utf-8") as out:
        environment = {**os.environ, "PYTHONPATH": python_path(stack)}
        for name, limit in LIMITS_S.items():
            if not re.search(options.only, name):
                continue
            left = options.limit - (time.monotonic() - began)
            record = run_apart(name, options.device, min(limit, left), environment)
            statuses.append(record["status"])
            out.write(json.dumps(record) + "\n")
            out.flush()
            print(json.dumps(record), flush=True)
    return 0 if "passed" in statuses and "failed" not in statuses else 1


def python_path(stack: ExitStack) -> str:
    """With the checkout importable as `penstock`, whatever its folder is called, and the builders of tests/."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-gpu")))
    (folder / "penstock").symlink_to(ROOT)
    return os.pathsep.join([str(folder), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])


def run_apart(name: str, device: str, limit_s: float, environment: dict[str, str]) -> dict[str, Any]:
    """The record of a check; what it prints besides goes to stderr."""
    if limit_s <= 0:
        return {"check": name, "status": "skipped", "reason": "out of time"}
    command = [sys.executable, "-m", "tests.gpu", "--check", name, "--device", device]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()  # a server, or pytest: it would hold the device
        process.kill()
        process.communicate()
        return {
            "check": name,
            "status": "failed",
            "seconds": limit_s,
            "error": f"not done in {limit_s:.0f} s",
        }
    lines = said.splitlines()
    found = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if "status" not in found:
        found = {"status": "failed", "error": f"the process ended with exit status {process.returncode}"}
    return {"check": name, "seconds": round(time.monotonic() - began, 1), **found}


def run_here(name: str, device: str) -> int:
    from . import checks

    try:
        found = {"status": "passed", **checks.CHECKS[name](device)}
    except checks.Skipped as reason:
        found = {"status": "skipped", "reason": str(reason)}
    except BaseException as error:  # the record must say it, whatever it is
        import traceback

        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        found = {"status": "failed", "error": f"{type(error).__name__}: {lines[0][:400]}"}
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
