"""Quantised models: close to the checkpoint, the same tokens in any company, loaded in little memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import serve
from penstock.engine.assemble import create
from penstock.engine.build import Built
from penstock.engine.choices import choose_quantization
from penstock.engine.errors import ConfigurationError
from penstock.engine.weights import DummyWeights, SafetensorsWeights
from penstock.scheduler.messages import EngineConfig, PoolingParams, QuantizationScheme, SamplingParams
from pooling_runs import pool
from tiny_encoders import make_encoder
from tiny_models import VOCAB_SIZE, make_checkpoint

MAX_TOKENS = 20
LONG = torch.randint(3, VOCAB_SIZE, (80,), generator=torch.Generator().manual_seed(3)).tolist()
PROMPTS = [LONG[:5], LONG[:47], LONG[20:50], LONG[:40], LONG[10:31], LONG[:44]]
GREEDY = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
SCHEMES = pytest.mark.parametrize("scheme", ["int8", "int4"])


def build(path: Path, **options: Any) -> Built:
    config = {
        "device": "cpu",
        "num_threads": 1,
        "max_model_len": 96,
        "page_size": 4,
        "num_pages": 26,
        "max_num_seqs": 5,
        "max_num_batched_tokens": 13,
        **options,
    }
    return create(EngineConfig(model_dir=str(path), **config), lambda phase, fraction: None)


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bfloat16, with an untied head and biases where the family has them; no width is a multiple of a block."""
    path = tmp_path_factory.mktemp(request.param)
    make_checkpoint(request.param, path, dtype=torch.bfloat16, hidden_size=160, intermediate_size=200)
    return path


def prompt_logprobs(path: Path, **options: Any) -> np.ndarray:
    """(tokens,) of the prompt's own tokens, and its greedy continuation's."""
    built = build(path, **options)
    try:
        served = serve(built, [LONG[:60]], SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0))
    finally:
        built.runner.close()
    return np.concatenate([row.logprobs for row in served.logprobs[0]])


def test_logprobs_stay_close_to_the_checkpoints(checkpoint: Path) -> None:
    exact = prompt_logprobs(checkpoint, dtype="float32")
    for scheme, most in (("int8", 0.1), ("int4", 1.0)):
        ours = prompt_logprobs(checkpoint, dtype="float32", quantization=scheme)
        difference = np.abs(ours - exact)
        assert 0 < difference.mean() < most
        oracle = prompt_logprobs(checkpoint, dtype="float32", quantization=scheme, attention_backend="torch")
        assert np.abs(ours - oracle).max() < 0.02, "the kernels compute what plain torch computes"


@SCHEMES
def test_tokens_are_the_same_alone_in_a_batch_and_after_preemption(
    checkpoint: Path, scheme: QuantizationScheme
) -> None:
    built = build(checkpoint, quantization=scheme)
    try:
        sampled = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.9, top_p=0.9, seed=4)
        for how in (GREEDY, sampled):
            alone = [serve(built, [prompt], how).outputs[0] for prompt in PROMPTS]
            together = serve(built, PROMPTS, how)
            assert together.load.num_preemptions > 0
            assert together.outputs == alone
            one_by_one = serve(built, PROMPTS, how, steps_in_flight=1, arrive_every=5)
            assert one_by_one.outputs == alone
        whole = alone[1]
        resumed = serve(built, [PROMPTS[1] + whole[:8]], sampled, num_prompt_tokens=[len(PROMPTS[1])])
        assert resumed.outputs[0] == whole
    finally:
        built.runner.close()


@SCHEMES
def test_the_engine_tells_what_it_did_and_how_large_the_weights_are(
    tmp_path: Path, scheme: QuantizationScheme
) -> None:
    make_checkpoint("qwen3", tmp_path, hidden_size=256, intermediate_size=512, tie_word_embeddings=True)
    sizes: dict[str | None, int] = {}
    for chosen in (None, scheme):
        built = build(tmp_path, dtype="bfloat16", quantization=chosen)
        built.runner.close()
        assert built.info.quantization == chosen
        sizes[chosen] = built.info.weight_bytes
    bits = {"int8": 8.125, "int4": 4.375}[scheme]
    assert sizes[scheme] / sizes[None] == pytest.approx(bits / 16, abs=0.1)


@SCHEMES
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_matrices_are_quantised_one_by_one(
    tmp_path: Path, scheme: QuantizationScheme, load_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a matrix is asked for, none of those before it is held any more; the embedding's table alone stays."""
    make_checkpoint("llama", tmp_path)
    kind = DummyWeights if load_format == "dummy" else SafetensorsWeights
    held: dict[str, weakref.ref[torch.Tensor]] = {}
    most = 0

    def watched(name: str, tensor: torch.Tensor) -> torch.Tensor:
        nonlocal most
        alive = [known for known, reference in held.items() if reference() is not None]
        most = max(most, len(alive))
        if tensor.dim() == 2 and "embed_tokens" not in name:
            held[name] = weakref.ref(tensor)
        return tensor

    tensor, stacked = kind.tensor, kind.stacked

    def one(self: Any, name: str, *more: Any) -> torch.Tensor:
        return watched(name, tensor(self, name, *more))

    def several(self: Any, names: Sequence[str], *more: Any) -> torch.Tensor:
        return watched(names[0], stacked(self, names, *more))

    monkeypatch.setattr(kind, "tensor", one)
    monkeypatch.setattr(kind, "stacked", several)
    build(tmp_path, quantization=scheme, load_format=load_format).runner.close()
    assert len(held) == 2 * 4 + 1, "four matrices a layer and the head"
    assert most == 0


def embeddings(tmp_path: Path) -> dict[str | None, list[np.ndarray]]:
    make_encoder("bert", tmp_path)
    found = {}
    for scheme in (None, "int8", "int4"):
        built = build(tmp_path, max_model_len=64, max_num_batched_tokens=96, quantization=scheme)
        prompts = [list(range(5, 25)), list(range(30, 37))]
        found[scheme] = pool(built, prompts, PoolingParams(task="embed", normalize=True))
        built.runner.close()
    return found


def test_encoders_are_quantised_too(tmp_path: Path) -> None:
    found = embeddings(tmp_path)
    for scheme, least in (("int8", 0.999), ("int4", 0.97)):
        cosines = [float(a @ b) for a, b in zip(found[None], found[scheme], strict=True)]
        assert least < min(cosines) < 1.0


def test_what_cannot_be_quantised_is_refused_in_one_line() -> None:
    config = EngineConfig(model_dir="", quantization="int8")
    for device, dtype, said in (
        ("cuda", torch.bfloat16, "--quantization int8 works on CPUs alone"),
        ("cpu", torch.float16, "not in float16: set --dtype"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            choose_quantization(config, torch.device(device), dtype)
