"""Every project's words for speculation mean one configuration; what is missing or contradictory is one clear line."""

from __future__ import annotations

from typing import Any

import pytest
from penstock.server import speculative
from penstock.server.speculative import METHODS, Rules, SpeculativeConfig, SpeculativeError, resolve


def complaint(config: dict[str, Any], **flags: Any) -> str:
    with pytest.raises(SpeculativeError) as caught:
        resolve(config, as_typed(flags))
    return str(caught.value)


def as_typed(flags: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    return {name: (f"--{name.replace('_', '-')}", value) for name, value in flags.items()}


@pytest.fixture
def all_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every method were available."""
    for method, rules in METHODS.items():
        built = Rules(available=True, needs_model=rules.needs_model, default_tokens=rules.default_tokens)
        monkeypatch.setitem(speculative.METHODS, method, built)


def ngram(tokens: int = 8, **more: Any) -> SpeculativeConfig:
    return SpeculativeConfig(method="ngram", num_speculative_tokens=tokens, **more)


def test_nothing_said_is_no_speculation() -> None:
    assert resolve({}, {}) is None


@pytest.mark.parametrize(
    ("config", "flags", "expected"),
    [
        ({"method": "ngram"}, {}, ngram()),
        ({"method": "ngram", "num_speculative_tokens": 5}, {}, ngram(5)),
        ({"method": "ngram", "num_speculative_tokens": None, "model": None}, {}, ngram()),
        ({"model": "[ngram]", "num_speculative_tokens": 5}, {}, ngram(5)),
        ({"method": "NGRAM_GPU"}, {}, ngram()),
        ({"method": "suffix"}, {}, ngram()),
        (
            {"method": "ngram", "prompt_lookup_max": 4},
            {},
            ngram(prompt_lookup_min=3, prompt_lookup_max=4),
        ),
        ({"method": "ngram", "prompt_lookup_max": 2}, {}, ngram(prompt_lookup_min=2, prompt_lookup_max=2)),
        ({"method": "ngram", "prompt_lookup_min": 5}, {}, ngram(prompt_lookup_min=5)),
        (
            {"method": "ngram", "adaptive": False, "shared_pool": 100_000, "window": 4096},
            {},
            ngram(adaptive=False, shared_pool=100_000, window=4096),
        ),
        (
            {"method": "ngram", "draft_tensor_parallel_size": 1, "draft_sample_method": "greedy"},
            {},
            ngram(),
        ),
        ({}, {"method": "ngram", "num_speculative_tokens": 3}, ngram(3)),
        ({"method": "ngram"}, {"num_speculative_tokens": 3}, ngram(3)),
        ({"method": "ngram", "num_speculative_tokens": 3}, {"num_speculative_tokens": 3}, ngram(3)),
        ({"method": "ngram"}, {"method": "NGRAM"}, ngram()),
        ({}, {"method": "NGRAM", "num_draft_tokens": 12}, ngram(11)),
        ({}, {"method": "NGRAM", "num_steps": 5, "num_draft_tokens": 6, "eagle_topk": 1}, ngram(5)),
        ({}, {"method": "NGRAM", "prompt_lookup_max": 18}, ngram(prompt_lookup_max=18)),
        ({"decoding_type": "NGram"}, {}, ngram(4)),
        ({"decoding_type": "ngram", "max_draft_len": 6}, {}, ngram(6)),
        ({"decoding_type": "NGRAM", "adaptive": False}, {}, ngram(4, adaptive=False)),
        ({"decoding_type": "NGram"}, {"num_speculative_tokens": 9, "method": "ngram"}, ngram(9)),
    ],
)
def test_words_of_every_project_are_understood(
    config: dict[str, Any], flags: dict[str, Any], expected: SpeculativeConfig
) -> None:
    assert resolve(config, as_typed(flags)) == expected


@pytest.mark.usefixtures("all_built")
@pytest.mark.parametrize(
    ("config", "flags", "method", "tokens", "model"),
    [
        ({"method": "eagle3", "model": "m", "num_speculative_tokens": 3}, {}, "eagle3", 3, "m"),
        ({"method": "deepseek_mtp"}, {}, "mtp", 1, None),
        ({}, {"method": "NEXTN", "num_steps": 2}, "mtp", 2, None),
        ({}, {"method": "STANDALONE", "model": "small"}, "draft_model", 4, "small"),
        ({"decoding_type": "eagle", "speculative_model_dir": "/d"}, {}, "eagle3", 4, "/d"),
        (
            {
                "decoding_type": "EAGLE",
                "speculative_model_dir": "/d",
                "max_draft_len": 7,
                "eagle3_one_model": True,
            },
            {},
            "eagle3",
            7,
            "/d",
        ),
        ({"decoding_type": "MTP", "num_nextn_predict_layers": 2}, {}, "mtp", 2, None),
        ({"decoding_type": "mtp", "num_nextn_predict_layers": 1, "max_draft_len": 3}, {}, "mtp", 3, None),
    ],
)
def test_methods_with_models_are_understood(
    config: dict[str, Any], flags: dict[str, Any], method: str, tokens: int, model: str | None
) -> None:
    resolved = resolve(config, as_typed(flags))
    assert resolved is not None
    assert (resolved.method, resolved.num_speculative_tokens, resolved.model) == (method, tokens, model)
    assert resolved.num_nextn_predict_layers == config.get("num_nextn_predict_layers")


@pytest.mark.parametrize(
    ("config", "flags", "parts"),
    [
        # missing
        ({"num_speculative_tokens": 3}, {}, ["method is missing", "ngram, eagle"]),
        ({"model": "m"}, {}, ["method is missing", "model m"]),
        ({}, {"num_steps": 3}, ["method is missing", "--num-steps 3"]),
        ({"method": "eagle3"}, {}, ["model is missing", "method eagle3", "directory"]),
        ({"method": "draft_model"}, {}, ["model is missing", "draft_model"]),
        ({"max_draft_len": 3}, {}, ["decoding_type is missing", "Eagle, MTP or NGram"]),
        ({"decoding_type": "Eagle"}, {}, ["speculative_model_dir is missing", "decoding_type Eagle"]),
        ({"decoding_type": "mtp"}, {}, ["num_nextn_predict_layers is missing", "decoding_type mtp"]),
        # of the wrong kind or out of range
        ({"method": 3}, {}, ["method 3", "text"]),
        ({"method": "ngrm"}, {}, ["method ngrm", "unknown method", "did you mean ngram?"]),
        ({"method": "medusa"}, {}, ["method medusa", "choose one of ngram"]),
        ({}, {"method": "DFLASH"}, ["--method DFLASH", "choose one of"]),
        ({"method": "ngram", "num_speculative_tokens": 0}, {}, ["num_speculative_tokens 0", "at least 1"]),
        ({"method": "ngram", "num_speculative_tokens": 129}, {}, ["129", "at most 128"]),
        ({"method": "ngram", "num_speculative_tokens": True}, {}, ["true", "whole number"]),
        (
            {"method": "ngram", "num_speculative_tokens": "5"},
            {},
            ["num_speculative_tokens 5", "whole number"],
        ),
        ({"method": "ngram", "num_speculative_tokens": 1.5}, {}, ["1.5", "whole number"]),
        ({"method": "ngram", "adaptive": 1}, {}, ["adaptive 1", "true or false"]),
        ({"method": "ngram", "shared_pool": 7}, {}, ["shared_pool 7", "1024"]),
        ({"method": "ngram", "window": 7}, {}, ["window 7", "at least 1024"]),
        ({"decoding_type": "Medusa"}, {}, ["decoding_type Medusa", "Eagle, MTP or NGram"]),
        (
            {"decoding_type": "MTP", "num_nextn_predict_layers": 0},
            {},
            ["num_nextn_predict_layers 0", "at least 1"],
        ),
        ({"decoding_type": "MTP", "num_nextn_predict_layers": True}, {}, ["true", "whole number"]),
        ({"decoding_type": "NGram", "max_draft_len": 0}, {}, ["max_draft_len 0", "at least 1"]),
        (
            {"decoding_type": "Eagle", "speculative_model_dir": "/d", "eagle3_one_model": 1},
            {},
            ["eagle3_one_model 1", "true or false"],
        ),
        ({}, {"method": "ngram", "num_draft_tokens": 1}, ["--num-draft-tokens 1", "at least 2"]),
        ({}, {"method": "eagle", "eagle_topk": 4}, ["--eagle-topk 4", "chains", "set it to 1"]),
        # contradictory
        ({"method": "ngram", "model": "m"}, {}, ["model m", "no model of its own", "leave it out"]),
        (
            {"method": "ngram"},
            {"method": "eagle3"},
            ["--method eagle3 contradicts", "method ngram", "keep one"],
        ),
        (
            {"method": "ngram", "num_speculative_tokens": 3},
            {"num_speculative_tokens": 5},
            ["--num-speculative-tokens 5 contradicts", "num_speculative_tokens 3"],
        ),
        (
            {},
            {"method": "ngram", "num_steps": 3, "num_draft_tokens": 8},
            ["--num-draft-tokens 8", "--num-steps 3"],
        ),
        (
            {"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 4},
            {},
            ["prompt_lookup_max 4", "prompt_lookup_min 5", "raise the first"],
        ),
        (
            {"method": "mtp", "prompt_lookup_max": 4},
            {},
            ["prompt_lookup_max 4", "no meaning with method mtp"],
        ),
        ({"decoding_type": "NGram", "method": "ngram"}, {}, ["method ngram", "decoding_type", "leave one"]),
        (
            {"decoding_type": "NGram", "speculative_model_dir": "/d"},
            {},
            ["speculative_model_dir /d", "no meaning with decoding_type NGram"],
        ),
        (
            {"decoding_type": "MTP", "num_nextn_predict_layers": 1, "eagle3_one_model": True},
            {},
            ["eagle3_one_model true", "no meaning with decoding_type MTP"],
        ),
        (
            {"decoding_type": "Eagle", "speculative_model_dir": "/d", "num_nextn_predict_layers": 1},
            {},
            ["num_nextn_predict_layers 1", "no meaning with decoding_type Eagle"],
        ),
        (
            {"decoding_type": "Eagle", "speculative_model_dir": "/d", "eagle3_one_model": False},
            {},
            ["eagle3_one_model false", "one program"],
        ),
        # what others have and this server decides otherwise
        (
            {"method": "ngram", "num_spec_tokens": 3},
            {},
            ["num_spec_tokens", "did you mean num_speculative_tokens?"],
        ),
        ({"method": "ngram", "zzz": 3}, {}, ["zzz", "unknown key", "the keys are method"]),
        (
            {"method": "ngram", "draft_tensor_parallel_size": 2},
            {},
            ["draft_tensor_parallel_size 2", "leave it out"],
        ),
        ({"method": "ngram", "rejection_sample_method": "synthetic"}, {}, ["synthetic", "leave it out"]),
        ({"method": "suffix", "suffix_decoding_max_cached_requests": 9}, {}, ["shared_pool", "leave it out"]),
        ({"method": "ngram", "disable_by_batch_size": 9}, {}, ["disable_by_batch_size 9", "leave it out"]),
    ],
)
def test_what_cannot_be_is_one_line_with_field_value_and_way_out(
    config: dict[str, Any], flags: dict[str, Any], parts: list[str]
) -> None:
    line = complaint(config, **flags)
    assert "\n" not in line
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"method": "eagle3", "model": "m"}, "eagle3"),
        ({"method": "mtp"}, "mtp"),
        ({"decoding_type": "Eagle", "speculative_model_dir": "/d"}, "eagle3"),
        ({"method": "draft_model", "model": "m"}, "draft_model"),
    ],
)
def test_a_method_that_is_not_built_is_refused_with_one_that_is(config: dict[str, Any], method: str) -> None:
    if METHODS[method].available:  # type: ignore[index]
        assert resolve(config, {}) is not None
    else:
        assert f"method '{method}' is not available yet: use ngram" in complaint(config)


def test_only_what_is_available_can_be_configured() -> None:
    for method, rules in METHODS.items():
        config = {"method": method, **({"model": "m"} if rules.needs_model else {})}
        if rules.available:
            resolved = resolve(config, {})
            assert resolved is not None
            assert resolved.num_speculative_tokens == rules.default_tokens
        else:
            assert "not available yet" in complaint(config)
