"""The command `penstock`: which subcommand, and how its errors reach the user. Each subcommand loads only what it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable

from .. import __version__

USAGE = """\
usage: penstock <command> [options]

  serve [MODEL]   serve a model behind an OpenAI-compatible API (no MODEL: a small embedded one)
  chat            talk to a running server, or to one that it starts
  bench serve     measure an OpenAI-compatible server under load
  bench gpu       measure this machine's engine beside what its memory and arithmetic allow
  train-draft     train a drafting head for a checkpoint (eagle3, mtp)
  version         print the version

`penstock <command> --help` says more about each.
"""


def serve(arguments: list[str]) -> int:
    from .launch import serve

    return serve(arguments)


def chat(arguments: list[str]) -> int:
    from .chat.cli import main

    return main(arguments)


def bench(arguments: list[str]) -> int:
    if arguments[:1] == ["serve"]:
        from .bench.cli import main as bench_serve

        return bench_serve(arguments[1:])
    if arguments[:1] == ["gpu"]:
        from .bench.gpu.cli import main as bench_gpu

        return bench_gpu(arguments[1:])
    given = f"bench {arguments[0]}: unknown" if arguments else "bench: say what to measure"
    print(f"error: {given}; there are `penstock bench serve` and `penstock bench gpu`", file=sys.stderr)
    return 2


def train_draft(arguments: list[str]) -> int:
    from .train_draft.cli import main

    return main(arguments)


def version(arguments: list[str]) -> int:
    print(f"penstock {__version__}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "serve": serve,
    "chat": chat,
    "bench": bench,
    "train-draft": train_draft,
    "version": version,
    "--version": version,
}


def run(arguments: list[str]) -> int:
    """The exit status of `penstock <arguments>`: 0, 1 if it failed, 2 if it was asked for something that cannot be."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    command = COMMANDS.get(arguments[0])
    if command is None:
        import difflib

        close = difflib.get_close_matches(arguments[0], COMMANDS, 1)
        way_out = f"did you mean {close[0]}?" if close else "`penstock --help` lists the commands"
        print(f"error: {arguments[0]}: unknown command; {way_out}", file=sys.stderr)
        return 2
    try:
        return command(arguments[1:])
    except KeyboardInterrupt:
        return 130


def main() -> None:
    sys.exit(run(sys.argv[1:]))
