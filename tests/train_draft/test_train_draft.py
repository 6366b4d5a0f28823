"""`penstock train-draft`: texts become the tokens that the model would see, mistakes are one line, stopped runs go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from penstock.server.text.template import load_template
from penstock.server.text.tokenizer import Tokenizer
from penstock.server.train_draft.cli import main
from penstock.server.train_draft.texts import Line, TextReader, read_lines
from safetensors.torch import load_file
from tiny_models import make_checkpoint

ANSWER = {"role": "assistant", "content": "fine"}
CHAT = [
    {"role": "user", "content": "hi"},
    ANSWER,
    {"role": "user", "content": "so?"},
    {**ANSWER, "content": "ok"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train_draft_cli") / "model"
    make_checkpoint("llama", path)
    return path


@pytest.fixture(scope="module")
def reader(model: Path) -> TextReader:
    tokenizer = Tokenizer.load(model)
    return TextReader(tokenizer, load_template(None, [model], tokenizer, seconds=5, max_bytes=1 << 20), 12)


def spelled(model: Path, tokens: Any) -> str:
    return Tokenizer.load(model).decode([int(token) for token in tokens])


def test_answers_of_a_conversation_are_drafted_and_nothing_else(reader: TextReader, model: Path) -> None:
    (text,) = reader.texts(Line(messages=CHAT))
    assert spelled(model, text.tokens) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nfine<|im_end|>\n"
        "<|im_start|>user\nso?<|im_end|>\n<|im_start|>assistant\nok<|im_end|>\n"
    )
    assert spelled(model, text.tokens[text.wanted == 1]) == "fine<|im_end|>\nok<|im_end|>\n"


def test_prompts_end_where_the_model_is_to_answer(reader: TextReader, model: Path) -> None:
    asked = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert spelled(model, reader.prompt(Line(messages=CHAT[:2]))) == asked
    sharegpt = Line(conversations=[{"from": "human", "value": "hi"}, {"from": "gpt", "value": "fine"}])
    assert spelled(model, reader.prompt(sharegpt)) == asked
    assert spelled(model, reader.prompt(Line(prompt="one two"))) == "one two"
    made = spelled(model, reader.random_prompt(np.random.default_rng(0)))
    assert made.startswith("<|im_start|>user\n")
    assert made.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_long_texts_come_in_pieces_and_completions_behind_their_prompts(
    reader: TextReader, model: Path
) -> None:
    pieces = reader.texts(Line(text="abcdefghijklmnopqrstuvwxyz"))
    assert [spelled(model, piece.tokens) for piece in pieces] == ["abcdefghijkl", "mnopqrstuvwx", "yz"]
    assert all(piece.wanted.all() for piece in pieces)
    (text,) = reader.texts(Line(prompt="1+1=", completion="2"))
    assert text.wanted.tolist() == [0, 0, 0, 0, 1]


def test_files_are_texts_or_lines_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n\n{"prompt": "y", "other": 1}\n')
    assert [line.text for line in read_lines(tmp_path / "a.txt")] == ["one\ntwo\n"]
    assert [(line.text, line.prompt) for line in read_lines(tmp_path / "b.jsonl")] == [
        ("x", None),
        (None, "y"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eagle2"], "invalid choice: 'eagle2'"),
        (["mtp", "--output", "o"], "required: --model/-m"),
        ([], "say what to train on: --text FILE, or --from-model"),
        (
            ["--text", "t.txt", "--steps", "5", "--tokens", "9"],
            "--steps and --tokens say the same thing: give one",
        ),
        (["--text", "t.txt", "--batch", "100"], "--batch 100 is less than --max-length 2048"),
        (["--text", "t.txt", "--head-only"], "--head-only is for mtp"),
        (["mtp", "--text", "t.txt", "--aux-layers", "1", "2", "3"], "--aux-layers is for eagle3, not mtp"),
        (["--text", "t.txt", "--steps", "0"], "'0' must be a whole number of at least 1"),
        (["--text", "missing.txt"], "missing.txt: No such file or directory: name a file that can be read"),
        (["--text", "bad.jsonl"], "bad.jsonl, line 2: needs one of"),
        (["--text", "worse.jsonl"], "worse.jsonl, line 1: Input data was truncated"),
        (["--text", "empty.txt"], "no text has as many as three tokens to train on"),
        (["--text", "t.txt", "--output", "t.txt"], "t.txt: File exists"),
        (["--text", "t.txt", "--output", "MODEL"], "is the model's own directory"),
        (["--text", "t.txt", "--model", "./nowhere"], "MODEL ./nowhere: no such directory"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("some text to read")
    Path("bad.jsonl").write_text('{"text": "x"}\n{"text": "x", "prompt": "y"}\n')
    Path("worse.jsonl").write_text("{\n")
    Path("empty.txt").write_text("")
    whole = [] if arguments and not arguments[0].startswith("-") else ["eagle3"]
    whole += [str(model) if word == "MODEL" else word for word in arguments]
    for option, value in (("--model", str(model)), ("--output", "out")):
        if option not in whole and "required" not in message:
            whole += [option, value]
    try:
        status = main(whole)
    except SystemExit as ended:
        status = ended.code
    said = capfd.readouterr().err
    assert status == 2
    assert message in said
    assert len(said.splitlines()) == 1


def start(model: Path, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "penstock", "train-draft", "eagle3", "--model", str(model)),
        *("--output", str(folder / "head"), "--from-model", "--num-prompts", "20", "--max-new-tokens", "8"),
        *("--max-length", "64", "--batch", "64", "--report-every", "1", "--threads", "1", "--device", "cpu"),
    ]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_terminated_run_saves_and_goes_on_where_it_was(model: Path, tmp_path: Path) -> None:
    """From prompts that are made up to files that can be read; nothing in them is code."""
    steps = ("--steps", "120", "--resume")
    first = start(model, tmp_path, *steps)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("step 3/"):
            os.kill(first.pid, signal.SIGTERM)
    assert first.wait(60) == 130
    assert not list((tmp_path / "head").iterdir())
    second = start(model, tmp_path, *steps)
    out, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    lines = out.splitlines()
    assert not any("answered" in line for line in lines), "the model's outputs are kept"
    resumed = next(int(line.split()[-1]) for line in lines if line.startswith("resumed at step"))
    assert 3 <= resumed < 120
    assert lines[-1].startswith("held out, greedy, 4 drafts: ")
    assert json.loads((tmp_path / "head" / "config.json").read_text())["architectures"] == [
        "LlamaForCausalLMEagle3"
    ]
    assert "fc.weight" in load_file(tmp_path / "head" / "model.safetensors")
