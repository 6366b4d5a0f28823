"""Drafters' checkpoints in every published form are read; what does not fit is one line that says why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace as replace_field
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import serve
from msgspec.structs import replace
from penstock.engine.build import create_runner
from penstock.engine.draft_models.config import EagleConfig, read_aux_layers, read_draft_config
from penstock.engine.errors import ConfigurationError
from penstock.engine.model_config import parse_model_config, read_raw_config
from penstock.scheduler.messages import EngineConfig, SamplingParams, SpeculativeConfig
from safetensors.torch import load_file, save_file
from tiny_drafters import DRAFT_VOCAB, HIDDEN, LAYER_CONFIG, add_mtp, make_eagle1, make_eagle3, write
from tiny_models import VOCAB_SIZE, make_checkpoint


@pytest.fixture
def target(tmp_path: Path) -> Path:
    make_checkpoint("qwen3", tmp_path / "target", num_hidden_layers=4)
    return tmp_path / "target"


def config(target: Path, method: str, model: Path | None = None, **changes: Any) -> EngineConfig:
    drafter = SpeculativeConfig(
        method=method,  # type: ignore[arg-type]
        num_speculative_tokens=3,
        model=None if model is None else str(model),
        **changes,
    )
    return EngineConfig(
        model_dir=str(target),
        device="cpu",
        num_threads=1,
        max_model_len=64,
        num_pages=20,
        max_num_seqs=2,
        speculative=drafter,
    )


def complaint(config: EngineConfig) -> str:
    with pytest.raises(ConfigurationError) as caught:
        create_runner(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    """Other tensors under these names (dots as double underscores); None: none."""
    stored = load_file(path / "model.safetensors")
    for name, tensor in tensors.items():
        stored.pop(name.replace("__", "."), None)
        if tensor is not None:
            stored[name.replace("__", ".")] = tensor
    save_file(stored, path / "model.safetensors")


def change_config(path: Path, **fields: Any) -> None:
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(raw | fields))


Break = Callable[[Path], None]
BROKEN: dict[str, tuple[str, Break, list[str]]] = {
    "another vocabulary": (
        "eagle3",
        lambda path: change_config(path, vocab_size=99),
        ["vocab_size 99", "320"],
    ),
    "another hidden size": (
        "eagle3",
        lambda path: change(path, fc__weight=torch.zeros(HIDDEN, 3 * 32)),
        ["hidden size of 32", "another model"],
    ),
    "another target's hidden size": (
        "eagle3",
        lambda path: change(path, fc__weight=None) or change_config(path, target_hidden_size=80),
        ["hidden size of 80", "64", "another model"],
    ),
    "ids beyond the vocabulary": (
        "eagle3",
        lambda path: change(path, d2t=torch.full((DRAFT_VOCAB,), VOCAB_SIZE)),
        ["d2t", "320 to 439", "320 tokens"],
    ),
    "ids below zero": (
        "eagle3",
        lambda path: change(path, d2t=torch.full((DRAFT_VOCAB,), -1)),
        ["d2t", "-1 to"],
    ),
    "too few ids": ("eagle3", lambda path: change(path, d2t=torch.zeros(3).long()), ["d2t is [3]", "120"]),
    "no ids": ("eagle3", lambda path: change(path, d2t=None), ["no d2t", "120"]),
    "no head": ("eagle3", lambda path: change(path, lm_head__weight=None), ["no lm_head.weight"]),
    "a tensor missing": (
        "eagle3",
        lambda path: change(path, midlayer__mlp__up_proj__weight=None),
        ["layers.0.mlp.up_proj.weight", "missing"],
    ),
    "layers of a larger model": (
        "eagle3",
        lambda path: change_config(path, eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 17, 32]}),
        ["[1, 17, 32]", "4 layers"],
    ),
    "no layers said": (
        "eagle3",
        lambda path: change_config(path, eagle_config={}),
        ["is missing", "4 layers"],
    ),
    "several layers": (
        "eagle3",
        lambda path: change_config(path, num_hidden_layers=2),
        ["num_hidden_layers 2"],
    ),
    "norms that are not built": ("eagle3", lambda path: change_config(path, fc_norm=True), ["fc_norm"]),
    "the first version": (
        "eagle3",
        lambda path: make_eagle1(path) and None,
        ["no EAGLE-3 head", "method eagle"],
    ),
    "the third version": ("eagle", lambda path: None, ["is an EAGLE-3 head", "use method eagle3"]),
    "no config": ("eagle3", lambda path: (path / "config.json").unlink(), ["config.json"]),
    "pickled weights": (
        "eagle3",
        lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin") and None,
        ["pytorch_model.bin", "convert", "safetensors"],
    ),
    "a rope of another kind": (
        "eagle3",
        lambda path: change_config(path, rope_scaling={"rope_type": "longrope"}),
        ["longrope"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_one_line_that_says_why(target: Path, tmp_path: Path, name: str) -> None:
    method, spoil, parts = BROKEN[name]
    make_eagle3(tmp_path / "head")
    spoil(tmp_path / "head")
    line = complaint(config(target, method, tmp_path / "head"))
    for part in parts:
        assert part in line


def test_a_drafter_that_is_not_there_is_named(target: Path, tmp_path: Path) -> None:
    assert "no such directory" in complaint(config(target, "eagle3", tmp_path / "nowhere"))
    assert "is no EAGLE head" in complaint(config(target, "eagle3", target))
    line = complaint(config(target, "mtp"))
    assert "holds no next-token layers" in line
    assert "mtp" in line


def test_next_token_layers_are_ignored_without_speculation_and_found_with_it(target: Path) -> None:
    add_mtp(target, 1)
    for method in ("ngram", "mtp"):
        create_runner(config(target, method)).runner.close()
    add_mtp(target, 1, "deepseek")
    create_runner(config(target, "ngram")).runner.close()


def test_no_more_layers_are_loaded_than_drafts_reach(target: Path) -> None:
    add_mtp(target, 3)
    model = parse_model_config(*read_raw_config(target))
    for asked, expected in ((None, 3), (2, 2), (5, 3)):
        read = read_draft_config(
            config(target, "mtp", num_nextn_predict_layers=asked), *read_raw_config(target), model
        )
        assert read is not None
        assert read.num_modules == expected


def test_a_layer_that_is_incomplete_is_named(target: Path) -> None:
    add_mtp(target, 1)
    change(target, model__mtp_layers__0__input_proj__weight=None)
    assert "model.mtp_layers.0.input_proj.weight" in complaint(config(target, "mtp"))


@pytest.mark.parametrize(
    ("raw", "num_layers", "expected"),
    [
        ({}, 32, (2, 16, 29)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 17, 32]}}, 36, (2, 18, 33)),
        ({"eagle_aux_hidden_state_layer_ids": [2, 18, 33]}, 36, (2, 18, 33)),
        ({"eagle_aux_hidden_state_layer_ids": [0, 4]}, 4, (0, 4)),
    ],
)
def test_layers_are_counted_as_their_writers_count_them(
    raw: dict[str, Any], num_layers: int, expected: tuple[int, ...]
) -> None:
    assert read_aux_layers(raw, "config.json", num_layers) == expected


FORMS: dict[str, Callable[[Path], None]] = {}


def form(make: Callable[[Path], None]) -> Callable[[Path], None]:
    FORMS[make.__name__.replace("_", " ")] = make
    return make


@form
def as_speculators_writes_it(path: Path) -> None:
    make_eagle3(path)
    tensors = load_file(path / "model.safetensors")
    renamed = {re.sub("^midlayer", "layers.0", name): tensor for name, tensor in tensors.items()}
    raw = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "transformer_layer_config": LAYER_CONFIG | {"model_type": "llama"},
        "draft_vocab_size": DRAFT_VOCAB,
        "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
        "norm_before_residual": True,
        "norm_before_fc": False,
        "target_hidden_size": None,
    }
    write(path, raw, renamed)


@form
def with_a_prefix_and_the_embedding_of_the_target(path: Path) -> None:
    make_eagle3(path)
    tensors = load_file(path / "model.safetensors")
    table = load_file(path.parent / "target" / "model.safetensors")["model.embed_tokens.weight"]
    body = {
        f"model.{name}": tensor
        for name, tensor in tensors.items()
        if name not in ("d2t", "t2d", "lm_head.weight")
    }
    others = {name: tensors[name] for name in ("d2t", "t2d", "lm_head.weight")}
    raw = json.loads((path / "config.json").read_text())
    write(path, raw, body | others | {"model.embed_tokens.weight": table})


@form
def over_the_whole_vocabulary_with_the_head_of_the_target(path: Path) -> None:
    make_eagle3(path)
    change(path, lm_head__weight=None, d2t=None, t2d=None)
    raw = json.loads((path / "config.json").read_text())
    del raw["draft_vocab_size"]
    (path / "config.json").write_text(json.dumps(raw))


@form
def with_biases_norms_of_heads_and_five_layers(path: Path) -> None:
    make_eagle3(path, aux=(0, 1, 2, 3, -1))
    change(
        path,
        midlayer__self_attn__q_norm__weight=torch.ones(16),
        midlayer__self_attn__k_norm__weight=torch.ones(16),
        midlayer__self_attn__q_proj__bias=torch.ones(64),
        midlayer__self_attn__k_proj__bias=torch.ones(32),
        midlayer__self_attn__v_proj__bias=torch.ones(32),
    )


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_head_is_read(target: Path, tmp_path: Path, name: str) -> None:
    FORMS[name](tmp_path / "head")
    built = create_runner(config(target, "eagle3", tmp_path / "head", adaptive=False))
    try:
        served = serve(built, [[5, 6, 7, 8]], SamplingParams(max_tokens=12, temperature=0.0))
    finally:
        built.runner.close()
    assert served.load.num_draft_tokens > 0


def test_a_copy_of_the_targets_embedding_takes_no_memory(target: Path, tmp_path: Path) -> None:
    with_a_prefix_and_the_embedding_of_the_target(tmp_path / "head")
    built = create_runner(config(target, "eagle3", tmp_path / "head"))
    try:
        module = built.runner._speculation._drafter._model.modules[0]  # type: ignore[attr-defined]
        assert module.embedding.args[0] is built.runner._model.embedding  # type: ignore[attr-defined]
    finally:
        built.runner.close()


def test_random_weights_need_no_weight_files(target: Path, tmp_path: Path) -> None:
    make_eagle3(tmp_path / "head")
    (tmp_path / "head" / "model.safetensors").unlink()
    dummy = replace(config(target, "eagle3", tmp_path / "head"), load_format="dummy")
    create_runner(dummy).runner.close()


def test_what_a_drafter_keeps_counts_as_kv_cache(target: Path, tmp_path: Path) -> None:
    make_eagle3(tmp_path / "head")
    sizes = []
    for asked in (config(target, "ngram"), config(target, "eagle3", tmp_path / "head")):
        built = create_runner(asked)
        sizes.append(built.info.kv_cache_bytes)
        built.runner.close()
    per_page = 4 * (2 * 16 * 2 * 16 + HIDDEN)  # keys and values of 16 tokens, and one state
    assert sizes[1] - sizes[0] == 20 * per_page


def test_a_configuration_is_read_without_its_weights(target: Path, tmp_path: Path) -> None:
    make_eagle3(tmp_path / "head", norm_before_residual=True)
    model = parse_model_config(*read_raw_config(target))
    read = read_draft_config(config(target, "eagle3", tmp_path / "head"), *read_raw_config(target), model)
    assert isinstance(read, EagleConfig)
    assert (read.aux_layers, read.draft_vocab_size) == ((1, 2, 3), DRAFT_VOCAB)
    assert read.norm_before_residual
    assert not read.norm_output


def test_mimo_is_qwen2_with_next_token_layers(tmp_path: Path) -> None:
    make_checkpoint("qwen2", tmp_path, tie_word_embeddings=False)
    raw, where = read_raw_config(tmp_path)
    ours = parse_model_config({**raw, "architectures": ["MiMoForCausalLM"]}, where)
    assert replace_field(ours, architecture="Qwen2ForCausalLM") == parse_model_config(raw, where)
    add_mtp(tmp_path, 1, qkv_bias=True)
    change_config(tmp_path, architectures=["MiMoForCausalLM"])
    create_runner(config(tmp_path, "mtp")).runner.close()
