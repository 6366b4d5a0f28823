"""`penstock chat` and `penstock bench serve` against the real server that a chat starts for itself."""

from __future__ import annotations

import io
import json
import sys

import psutil
from penstock.server.bench.cli import main as bench
from penstock.server.chat import cli as chat
from penstock.server.chat.own_server import own_server, serve_command


def test_chat_starts_a_server_that_answers_turns_and_a_load_and_leaves_nothing_behind(
    monkeypatch, capsys
) -> None:
    progress = io.StringIO()
    with own_server(serve_command(None), progress) as url:
        assert "ready: " in progress.getvalue()
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello!\nWhat is your name?\n/stats\n"))
        )
        assert chat.main(["--url", url, "--temperature", "0", "--max-tokens", "20"]) == 0
        said = capsys.readouterr()
        assert all(said.out.splitlines())
        assert "of them cached; answer: " in said.err

        shared = ["--dataset-name", "shared-prefix", "--gsp-num-groups", "2", "--gsp-prompts-per-group", "4"]
        sizes = ["--gsp-system-prompt-len", "64", "--gsp-question-len", "16", "--gsp-output-len", "6"]
        arguments = [
            *shared,
            *sizes,
            "--ignore-eos",
            "--no-calibrate",
            "--max-concurrency",
            "1",
            "--json",
            "-",
        ]
        assert bench(["--base-url", url, *arguments]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert (figures["completed"], figures["failed"]) == (8, 0)
        assert (figures["total_input_tokens"], figures["total_output_tokens"]) == (8 * 80, 8 * 6)
        assert figures["total_cached_tokens"] == 6 * 64  # all but each group's first
        assert figures["output_tokens_counted_requests"] == 0
        family = psutil.Process().children(recursive=True)
        assert len(family) >= 2
    assert not [process for process in family if process.is_running()]
