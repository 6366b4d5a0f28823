"""The chat's read-eval-print loop: commands, line editing on a terminal, one turn a line from a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import msgspec

from .session import ChatFailed, Session

PROMPT = "> "
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
# A model's output must not be able to drive the terminal.
_HARMLESS = {
    code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}
_HARMLESS[ord("\r")] = ""


class Repl:
    """Reads turns and commands until the end of input; answers go to stdout, everything else to stderr."""

    def __init__(self, session: Session, runner: asyncio.Runner) -> None:
        self._session = session
        self._runner = runner
        self._tty = sys.stdin.isatty() and sys.stdout.isatty()
        self._failed = False
        self._over = False
        self._dim = False
        self._commands: dict[str, tuple[Callable[[str], None], str, str]] = {
            "help": (self._help, "", "this list"),
            "clear": (self._clear, "", "forget the conversation"),
            "system": (self._system, "TEXT", "set the system prompt (without TEXT: show it)"),
            "save": (
                self._save,
                "FILE",
                "write the conversation as a line of JSON (bench serve can replay it)",
            ),
            "regenerate": (self._regenerate, "", "another answer to the last question"),
            "stats": (self._stats, "", "time to first token and speed of the last answer"),
            "exit": (self._exit, "", "end (also Ctrl-D)"),
        }

    def run(self) -> int:
        """0; from a pipe 1 when a turn failed, 130 when Ctrl-C ended it between answers."""
        if self._tty:
            _edit_lines()
            self._say(f"{self._session.model} at {self._session.client.url}; /help lists the commands")
        for line in self._lines():
            with self._reported():
                self._take(line)
            if self._over:
                break
        return 1 if self._failed and not self._tty else 0

    def _lines(self) -> Iterator[str]:
        if not self._tty:
            sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
            yield from (line.rstrip("\r\n") for line in sys.stdin)
            return
        while True:
            try:
                yield input(PROMPT)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                self._say("\n(Ctrl-D or /exit ends the chat)")

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except ChatFailed as error:
            self._failed = True
            self._say(f"error: {error}")

    def _take(self, line: str) -> None:
        text = line.strip()
        if not text:
            return
        if not text.startswith("/") or text.startswith("//"):
            self._answer(
                self._session.ask(text.removeprefix("/") if text.startswith("//") else text, self._show)
            )
            return
        name, _, rest = text[1:].partition(" ")
        if name not in self._commands:
            raise ChatFailed(f"/{name} is no command (/help lists them; // begins a message with a slash)")
        self._commands[name][0](rest.strip())

    def _answer(self, answering: Coroutine[None, None, None]) -> None:
        """Run until the answer has ended; Ctrl-C ends it early and closes its connection, so the server stops too."""
        self._dim = False
        try:
            self._runner.run(answering)
        except KeyboardInterrupt:
            self._end_answer()
            self._say("(stopped)")
        except ChatFailed:
            self._end_answer()
            raise
        else:
            self._end_answer()

    def _show(self, piece: str, is_reasoning: bool) -> None:
        if not self._tty:
            if not is_reasoning:
                sys.stdout.write(piece)
                sys.stdout.flush()
            return
        mark = ""
        if is_reasoning != self._dim:
            self._dim = is_reasoning
            mark = _DIM if is_reasoning else _PLAIN + "\n"
        sys.stdout.write(mark + piece.translate(_HARMLESS))
        sys.stdout.flush()

    def _end_answer(self) -> None:
        print(_PLAIN if self._dim else "", flush=True)
        self._dim = False

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    # commands

    def _help(self, _: str) -> None:
        for name, (_run, argument, what) in self._commands.items():
            self._say(f"  {'/' + name + ' ' + argument:<16}{what}")
        self._say("  Ctrl-C          stop the answer")

    def _clear(self, _: str) -> None:
        self._session.messages.clear()

    def _system(self, text: str) -> None:
        if text:
            self._session.system = text
        else:
            self._say(self._session.system or "(no system prompt)")

    def _save(self, name: str) -> None:
        if not name:
            raise ChatFailed("/save needs the name of a file")
        saved = {"model": self._session.model, "messages": self._session.history}
        try:
            Path(name).expanduser().write_bytes(msgspec.json.encode(saved) + b"\n")
        except OSError as error:
            raise ChatFailed(f"{name} cannot be written: {error.strerror}") from None

    def _regenerate(self, _: str) -> None:
        self._answer(self._session.regenerate(self._show))

    def _stats(self, _: str) -> None:
        for line in self._session.stats.lines():
            self._say(line)

    def _exit(self, _: str) -> None:
        self._over = True


def _edit_lines() -> None:
    """Give `input` line editing and history, where the interpreter was built with readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
