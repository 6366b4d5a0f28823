"""The chat as a user runs it: from a pipe and on a terminal, in its own process, against a scripted server."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_openai import Gate, Request, event, fake_openai, stream, whole

COMMAND = [sys.executable, "-m", "penstock", "chat"]


def piped(url: str, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--url", url, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def echo(request: Request):
    said = [message["content"] for message in request.body["messages"]]
    return stream(*(f"<{text}>" for text in said))


def test_each_piped_line_is_a_turn_and_stdout_holds_nothing_but_answers(tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    script = f"one\n\n/system be brief\ntwo\n/save {saved}\n/clear\n//three\n/exit\nnever\n"
    with fake_openai(echo) as fake:
        done = piped(fake.url, script)
    assert done.stdout == "<one>\n<be brief><one><<one>><two>\n<be brief></three>\n"
    assert (done.stderr, done.returncode) == ("", 0)
    assert [message["role"] for message in json.loads(saved.read_text())["messages"]] == [
        "system",
        *["user", "assistant"] * 2,
    ]


def test_a_failed_piped_turn_is_said_on_stderr_and_in_the_exit_code() -> None:
    answers = iter([whole({"error": {"message": "prompt too long"}}, 400), stream("fine")])
    with fake_openai(lambda _: next(answers)) as fake:
        done = piped(fake.url, "long\nshort\n/unknown\n")
    assert done.stdout == "\nfine\n"
    assert "error: the server answered 400: prompt too long" in done.stderr
    assert "/unknown is no command" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("answer", "arguments", "complaint"),
    [
        (lambda: whole({"error": "Unauthorized"}, 401), [], "wants an API key: give --api-key"),
        (lambda: whole({"no": "models"}, 404), [], "is it a model server?"),
        (None, [], "nothing listens there"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_line(answer, arguments: list[str], complaint: str) -> None:
    with fake_openai(lambda _: stream("x")) as fake:
        if answer is not None:
            fake.models_answer = answer
        done = piped(fake.url if answer else "http://127.0.0.1:1", "hello\n", *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr


def test_contradictory_options_are_one_line_and_exit_code_2() -> None:
    done = piped("http://127.0.0.1:1", "", "some/model")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "give one" in done.stderr


class Terminal:
    """The chat on a pseudo-terminal: type into it, wait for what it shows."""

    def __init__(self, *arguments: str) -> None:
        self._fd, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C becomes SIGINT
        )
        os.close(slave)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str) -> str:
        """What was shown up to and with `text`, since the last wait."""
        deadline = time.monotonic() + 30
        while text not in self.text:
            ready, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"waited for {text!r}, saw {self.text!r}"
            self.text += os.read(self._fd, 65536).decode(errors="replace")
        seen, _, self.text = self.text.partition(text)
        return seen + text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_a_terminal_session_streams_stops_and_goes_on(terminals: list[Terminal]) -> None:
    gate = Gate()
    reasoning = event({"choices": [{"delta": {"reasoning_content": "hmm"}}]})
    answers = iter(
        [stream("Hel", "lo \x1b]0;title\x07"), stream("begun", gate, "never"), stream(reasoning, "again")]
    )
    with fake_openai(lambda _: next(answers)) as fake:
        terminal = Terminal("--url", fake.url)
        terminals.append(terminal)
        assert f"fake at {fake.url}; /help" in terminal.wait_for("> ")

        terminal.type("hi\n")
        shown = terminal.wait_for("> ")
        assert "Hello \N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}" in shown
        assert "\x1b]" not in shown

        terminal.type("/stats\n")
        assert "answer: 2 tokens, first after" in terminal.wait_for("(stop)")
        terminal.wait_for("> ")

        terminal.type("tell me\n")
        terminal.wait_for("begun")
        terminal.type("\x03")
        terminal.wait_for("(stopped)")
        assert fake.left_early.wait(10), "the stopped answer's connection was not closed"
        terminal.wait_for("> ")

        terminal.type("half a line\x03")
        terminal.wait_for("/exit ends the chat")
        terminal.wait_for("> ")

        terminal.type("/regenerate\n")
        shown = terminal.wait_for("again")
        assert "\x1b[2mhmm\x1b[0m" in shown
        assert fake.posts()[-1].body["messages"][-1] == {"role": "user", "content": "tell me"}
        terminal.wait_for("> ")

        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
