"""A model is found embedded, in a directory or on the hub; what is missing is one line with the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from penstock.server.config import ModelOptions
from penstock.server.model_files import DEMO_DIR, ModelError, resolve


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A directory with everything a checkpoint needs, as far as the supervisor looks."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    (folder / "tokenizer.json").write_text("{}")
    return folder


def complaint(**options: object) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(ModelOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_model_is_the_embedded_one_under_its_name() -> None:
    files = resolve(ModelOptions())
    assert files.model_dir == files.tokenizer_dir == DEMO_DIR
    assert files.served_names == ["penstock-demo"]
    assert files.generation_config == DEMO_DIR / "generation_config.json"


def test_a_directory_is_served_under_the_path_as_given_or_the_names_asked_for(checkpoint: Path) -> None:
    assert resolve(ModelOptions(model=str(checkpoint))).served_names == [str(checkpoint)]
    named = resolve(ModelOptions(model=str(checkpoint), served_model_name=["a", "b"]))
    assert named.served_names == ["a", "b"]
    assert named.model_dir == checkpoint


@pytest.mark.parametrize(
    ("missing", "parts"),
    [
        ("config.json", ["MODEL", "config.json"]),
        ("model.safetensors", ["MODEL", "safetensors", "--load-format dummy"]),
        ("tokenizer.json", ["tokenizer.json", "--tokenizer"]),
    ],
)
def test_a_missing_file_is_named(checkpoint: Path, missing: str, parts: list[str]) -> None:
    (checkpoint / missing).unlink()
    line = complaint(model=str(checkpoint))
    for part in [str(checkpoint), *parts]:
        assert part in line


def test_dummy_weights_need_no_weight_files(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert resolve(ModelOptions(model=str(checkpoint), load_format="dummy")).model_dir == checkpoint


def test_a_tokenizer_may_come_from_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (checkpoint / "tokenizer.json").rename(other / "tokenizer.json")
    assert resolve(ModelOptions(model=str(checkpoint), tokenizer=str(other))).tokenizer_dir == other


def test_what_is_no_directory_and_no_hub_id_is_refused(checkpoint: Path) -> None:
    assert "is a file" in complaint(model=str(checkpoint / "config.json"))
    for name in ("/no/such", "./no-such", "~/no-such", "a/b/c", "with space"):
        assert complaint(model=name).startswith(f"MODEL {name}: no such directory")


def test_a_revision_of_a_local_directory_is_refused(checkpoint: Path) -> None:
    assert "--revision main" in complaint(model=str(checkpoint), revision="main")


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (errors.GatedRepoError, "accept its terms"),
        (errors.RepositoryNotFoundError, "check the name"),
        (errors.RevisionNotFoundError, "check --revision"),
        (errors.LocalEntryNotFoundError, "cannot be reached"),
        (errors.OfflineModeIsEnabled, "cannot be reached"),
        (ConnectionError, "cannot be reached"),
        (errors.HfHubHTTPError, "the download failed"),
        (OSError, "the download failed"),
    ],
)
def test_a_failing_download_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], part: str
) -> None:
    def fail(name: str, **options: object) -> str:
        raise error.__new__(error)  # the hub's errors want a response to be made with

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    line = complaint(model="org/name", revision="v1")
    assert line.startswith("MODEL org/name --revision v1: ")
    assert part in line


def test_a_download_fetches_what_is_needed_and_no_second_copy_of_the_weights(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    asked: list[dict] = []

    def snapshot(name: str, **options: object) -> str:
        asked.append({"name": name, **options})
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    options = ModelOptions(
        model="org/name", revision="v1", hf_token="t", download_dir="/d", tokenizer="org/words"
    )
    assert resolve(options).served_names == ["org/name"]
    model, tokenizer = asked
    assert (model["name"], model["revision"], model["token"], model["cache_dir"]) == (
        "org/name",
        "v1",
        "t",
        "/d",
    )
    assert "*.safetensors" in model["allow_patterns"]
    assert "*.safetensors" not in tokenizer["allow_patterns"]
    kept = ["config.json", "model.safetensors", "modules.json", "1_Pooling/config.json"]
    others = ["onnx/config.json", "original/model.safetensors", "consolidated.safetensors", "model.bin"]
    patterns = {name: model[name] for name in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects([*kept, *others], **patterns)) == kept


def test_a_chat_template_is_a_file_or_the_text_itself(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages }}")
    for given in (str(path), "{{ messages }}"):
        assert (
            resolve(ModelOptions(model=str(checkpoint), chat_template=given)).chat_template
            == "{{ messages }}"
        )
    assert "--chat-template nowhere.jinja" in complaint(model=str(checkpoint), chat_template="nowhere.jinja")


def test_sampling_defaults_come_from_the_model_elsewhere_or_nowhere(checkpoint: Path, tmp_path: Path) -> None:
    def found(given: str) -> Path | None:
        return resolve(ModelOptions(model=str(checkpoint), generation_config=given)).generation_config

    assert found("auto") is None
    (checkpoint / "generation_config.json").write_text("{}")
    assert found("auto") == checkpoint / "generation_config.json"
    assert found("none") is None
    other = tmp_path / "generation_config.json"
    other.write_text(json.dumps({"temperature": 0.1}))
    assert found(str(tmp_path)) == found(str(other)) == other
    other.write_text("{")
    assert "not JSON" in complaint(model=str(checkpoint), generation_config=str(other))
    assert "/nowhere" in complaint(model=str(checkpoint), generation_config="/nowhere")
