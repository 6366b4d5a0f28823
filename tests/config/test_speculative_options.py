"""Speculation on the command line and in a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from penstock.server.options.parse import OptionError, parse
from penstock.server.speculative import SpeculativeConfig
from penstock.server.speculative_options import speculation


def resolved(*arguments: str) -> SpeculativeConfig | None:
    return speculation(parse(arguments).config.speculative)


def complaint(*arguments: str) -> str:
    with pytest.raises(OptionError) as caught:
        parse(arguments)
    return str(caught.value)


def ngram(tokens: int, **more: object) -> SpeculativeConfig:
    return SpeculativeConfig(method="ngram", num_speculative_tokens=tokens, **more)  # type: ignore[arg-type]


def test_without_options_nothing_is_drafted() -> None:
    assert resolved() is None
    assert resolved("--speculative-config", "{}") is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('--speculative-config {"method":"ngram","num_speculative_tokens":5}', ngram(5)),
        ('-sc {"method":"ngram","prompt_lookup_max":4}', ngram(8, prompt_lookup_max=4)),
        ('--speculative-config {"decoding_type":"ngram","max_draft_len":6}', ngram(6)),
        ("--spec-method ngram --spec-tokens 3", ngram(3)),
        ('--speculative-config {"method":"ngram"} --spec-tokens 3', ngram(3)),
        ("--speculative-algorithm NGRAM --speculative-num-draft-tokens 12", ngram(11)),
        ("--speculative-algo NGRAM --speculative-num-steps 5 --speculative-eagle-topk 1", ngram(5)),
        (
            "--spec-method ngram --speculative-ngram-min-match-window-size 2 --speculative-ngram-max-trie-depth 18",
            ngram(8, prompt_lookup_min=2, prompt_lookup_max=18),
        ),
        ("--spec-method ngram --no-speculative-adaptive", ngram(8, adaptive=False)),
    ],
)
def test_flags_of_every_project_are_understood(arguments: str, expected: SpeculativeConfig) -> None:
    assert resolved(*arguments.split(" ")) == expected


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ('--speculative-config {"method":"ngrm"}', ["method ngrm", "did you mean ngram?"]),
        ("--speculative-config ngram", ["--speculative-config ngram", "JSON object"]),
        ("--spec-tokens 3", ["method is missing", "--spec-tokens 3"]),
        ("--spec-method ngram --spec-tokens 0", ["--spec-tokens 0", "at least 1"]),
        ("--spec-method ngram --spec-model m", ["--spec-model m", "no model of its own"]),
        ("--spec-method ngram --speculative-eagle-topk 4", ["--speculative-eagle-topk 4", "chains"]),
        (
            "--spec-method ngram --spec-tokens 3 --speculative-num-draft-tokens 8",
            ["--speculative-num-draft-tokens 8", "contradicts --spec-tokens 3"],
        ),
        ("--spec-method ngram --runner pooling", ["method ngram", "--runner pooling", "leave one"]),
        ("--spec-method mtp -pp 2", ["method mtp", "--pipeline-parallel-size 2", "leave one"]),
        ("--spec-method mtp -tp 2", ["method mtp", "--tensor-parallel-size 2", "use method ngram"]),
        ("--spec-method ngram -pp 2", ["method ngram", "--pipeline-parallel-size 2", "leave one"]),
        ("--speculative-accept-threshold-acc 0.5", ["--speculative-accept-threshold-acc", "leave it out"]),
        ("--speculative-ngram-capacity 5", ["--speculative-ngram-capacity", "shared_pool"]),
    ],
)
def test_what_cannot_be_is_one_line(arguments: str, parts: list[str]) -> None:
    line = complaint(*arguments.split(" "))
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_a_file_may_hold_the_object_as_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("speculative_config:\n  decoding_type: NGRAM\n  max_draft_len: 3\n")
    assert resolved("--config", str(path)) == ngram(3)
    path.write_text("speculative:\n  spec_method: ngram\n  spec_tokens: 2\n")
    assert resolved("--config", str(path)) == ngram(2)
    path.write_text("speculative_config:\n  decoding_type: Eagle\n")
    assert "speculative_model_dir is missing" in complaint("--config", str(path))


def test_the_command_ends_with_status_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "serve", "--speculative-config", '{"decoding_type":"MTP"}'],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --speculative-config: num_nextn_predict_layers is missing")
    assert done.stderr.count("\n") == 1
