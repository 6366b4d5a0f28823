"""A conversation's history after answers, stops and failures; and a server of the chat's own from start to end."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import Callable

import pytest
from fake_openai import CLOSE, STREAM_HEAD, Answer, Gate, Request, choice, event, fake_openai, stream, whole
from penstock.server.chat import cli as chat
from penstock.server.chat.own_server import ServerFailed, own_server, serve_command
from penstock.server.chat.session import ChatFailed, Session
from penstock.server.client.http import HttpClient


def talk(answer: Callable[[Request], Answer], work: Callable[[Session], object], **settings: object):
    """(session, what was shown, requests) after `work`, a coroutine function over a session."""
    shown: list[str] = []

    async def go(url: str) -> Session:
        client = HttpClient(url)
        session = Session(client, model="m", **settings)
        session.show = lambda piece, is_reasoning: shown.append(("~" if is_reasoning else "") + piece)
        await work(session)
        client.close()
        return session

    with fake_openai(answer) as fake:
        return asyncio.run(go(fake.url)), shown, [request.body for request in fake.posts()]


def test_each_turn_sends_the_whole_history_and_the_settings() -> None:
    async def work(session: Session) -> None:
        await session.ask("one", session.show)
        await session.ask("two", session.show)

    session, shown, bodies = talk(
        lambda _: stream("Hel", "lo"), work, system="be kind", temperature=0.5, max_tokens=9
    )
    assert shown == ["Hel", "lo"] * 2
    assert bodies[1]["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "two"},
    ]
    assert (bodies[0]["model"], bodies[0]["temperature"], bodies[0]["max_tokens"]) == ("m", 0.5, 9)
    assert session.messages[-1] == {"role": "assistant", "content": "Hello"}


def test_settings_not_given_are_left_to_the_server() -> None:
    _, _, (body,) = talk(lambda _: stream("x"), lambda session: session.ask("one", session.show))
    assert not {"temperature", "max_tokens"} & set(body)


def test_reasoning_is_shown_apart_and_stays_out_of_the_history() -> None:
    pieces = [event(choice(True, None, reasoning_content="hm")), "so"]
    session, shown, _ = talk(lambda _: stream(*pieces), lambda session: session.ask("one", session.show))
    assert shown == ["~hm", "so"]
    assert session.messages[-1]["content"] == "so"


def test_stats_of_an_answer() -> None:
    session, _, _ = talk(
        lambda _: stream("a", "b", tokens=4, prompt_tokens=20, cached=16),
        lambda session: session.ask("q", session.show),
    )
    (line,) = session.stats.lines()
    assert line.startswith("prompt: 20 tokens, 16 of them cached; answer: 4 tokens, first after ")
    assert line.endswith("tok/s (stop)")


@pytest.mark.parametrize(
    ("answer", "message", "kept"),
    [
        (lambda: whole({"error": {"message": "prompt too long"}}, 400), "answered 400: prompt too long", 0),
        (lambda: whole({"error": "Unauthorized"}, 401), "give --api-key", 0),
        (lambda: whole({"error": {"message": "full"}}, 429, "Retry-After: 7\r\n"), "try again in 7 s", 0),
        (lambda: [STREAM_HEAD, event({"error": {"message": "engine lost"}}), b"0\r\n\r\n"], "engine lost", 0),
        (lambda: [STREAM_HEAD, event(choice(True, "half")), b"0\r\n\r\n"], "in mid-answer", 2),
        (lambda: [STREAM_HEAD, event(choice(True, "half")), CLOSE], "closed the connection", 2),
        (lambda: [STREAM_HEAD, event("{nonsense"), b"0\r\n\r\n"], "makes no sense", 0),
    ],
)
def test_a_failed_answer_is_one_line_and_leaves_turns_in_pairs(answer, message: str, kept: int) -> None:
    async def work(session: Session) -> None:
        with pytest.raises(ChatFailed, match=message) as caught:
            await session.ask("one", session.show)
        assert "\n" not in str(caught.value)

    session, _, _ = talk(lambda _: answer(), work)
    assert len(session.messages) == kept


def test_stopping_an_answer_keeps_what_was_said_and_closes_the_stream() -> None:
    gate = Gate()

    async def work(session: Session) -> None:
        task = asyncio.ensure_future(session.ask("one", session.show))
        await asyncio.to_thread(gate.reached.wait, 10)
        while not session.stats.tokens:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    session, shown, _ = talk(lambda _: stream("begun", gate, "never"), work)
    assert shown == ["begun"]
    assert session.messages == [{"role": "user", "content": "one"}, {"role": "assistant", "content": "begun"}]


def test_regenerate_replaces_the_answer_and_a_failure_brings_the_old_one_back() -> None:
    answers = iter([stream("first"), stream("second"), whole({"error": "no"}, 500)])

    async def work(session: Session) -> None:
        with pytest.raises(ChatFailed, match="no answer"):
            await session.regenerate(session.show)
        await session.ask("one", session.show)
        await session.regenerate(session.show)
        with pytest.raises(ChatFailed, match="500"):
            await session.regenerate(session.show)

    session, _, bodies = talk(lambda _: next(answers), work)
    assert session.messages == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "second"},
    ]
    assert bodies[1]["messages"] == [{"role": "user", "content": "one"}]


# ------------------------------------------------------------------------------------------- a server of one's own

STARTING = "import sys, time; print('loading 10%\\rloading 100%'); "


def test_an_own_server_shows_its_progress_and_ends_with_the_block() -> None:
    show = io.StringIO()
    ready = "import os; print(os.getpid(), 'ready: http://127.0.0.1:7 (m)', flush=True); time.sleep(3600)"
    with own_server([sys.executable, "-c", STARTING + ready], show) as url:
        assert url == "http://127.0.0.1:7"
        process = int(show.getvalue().splitlines()[-1].split()[0])
        os.kill(process, 0)
    assert "loading 100%" in show.getvalue()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_server_that_ends_before_it_is_ready_is_reported_with_its_last_words() -> None:
    script = STARTING + "print('error: --dtype x: no such type', file=sys.stderr); sys.exit(2)"
    with (
        pytest.raises(ServerFailed, match="exit code 2: error: --dtype x: no such type"),
        own_server([sys.executable, "-c", script], io.StringIO()),
    ):
        raise AssertionError("there is no server")


def test_the_own_servers_command_is_penstock_serve_on_a_free_local_port() -> None:
    command = serve_command("some/model")
    assert command[1:] == [
        "-P",
        "-m",
        "penstock",
        "serve",
        "some/model",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
    ]
    assert serve_command(None)[2:5] == ["-m", "penstock", "serve"]


def test_chat_starts_a_server_of_the_model_when_none_serves_it(monkeypatch, capsys) -> None:
    """The default address answers but serves another model, so one is started; it answers, and is stopped."""
    started: list[str | None] = []
    with (
        fake_openai(lambda _: stream("from my own"), "mine") as own,
        fake_openai(lambda _: stream("no")) as other,
    ):

        def command(model: str | None) -> list[str]:
            started.append(model)
            ready = f"print('ready: {own.url} (model mine)', flush=True); import time; time.sleep(3600)"
            return [sys.executable, "-c", ready]

        monkeypatch.setattr(chat, "serve_command", command)
        monkeypatch.setattr(chat, "DEFAULT_URL", other.url)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
        assert chat.main(["mine"]) == 0
        assert started == ["mine"]
        assert other.posts() == []
    assert capsys.readouterr().out == "from my own\n"


def test_chat_uses_a_running_server_that_serves_the_model(monkeypatch, capsys) -> None:
    with fake_openai(lambda _: stream("hi"), "mine") as running:
        monkeypatch.setattr(chat, "serve_command", lambda _: pytest.fail("nothing is to be started"))
        monkeypatch.setattr(chat, "DEFAULT_URL", running.url)
        for arguments in ([], ["mine"], ["--model", "mine"]):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
            assert chat.main(arguments) == 0
        assert [request.body["model"] for request in running.posts()] == ["mine"] * 3
