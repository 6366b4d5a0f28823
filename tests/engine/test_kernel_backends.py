"""Whole models over the CUDA back end's stand-in, keys and values of 8 bits, and back ends that cannot be had."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from engine_runs import engine_logits, serve
from fake_flashinfer import fake_flashinfer
from kernel_targets import standin_attention
from penstock.engine.build import create_runner
from penstock.engine.errors import ConfigurationError
from penstock.kernels import select
from penstock.kernels.attention.interface import AttentionSpec
from penstock.scheduler.messages import EngineConfig, SamplingParams
from tiny_models import VOCAB_SIZE, make_checkpoint

TOKENS = torch.randint(3, VOCAB_SIZE, (60,), generator=torch.Generator().manual_seed(3)).tolist()
GPU_HEADS = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """`flashinfer` can be selected on a CPU, and is the stand-in: the kernels called, of each attention back end."""
    from penstock.kernels.cuda.ops import CudaOps

    made: list[list[str]] = []

    def attention(device: torch.device, spec: AttentionSpec) -> object:
        backend, flashinfer, _ = standin_attention(spec)
        made.append(flashinfer.calls)
        return backend

    monkeypatch.setattr(select, "is_flashinfer", lambda name, device: name == "flashinfer")
    monkeypatch.setattr(select, "cuda_ops", lambda quantization: CudaOps(fake_flashinfer()))
    monkeypatch.setattr(select, "cuda_attention", attention)
    return made


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("qwen3", {}),
        ("mistral", {"sliding_window": 13}),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 13, "max_window_layers": 1, "hidden_size": 128},
        ),
    ],
    ids=["norms of heads", "windows", "two KV groups"],
)
def test_a_model_serves_the_same_tokens_over_the_stand_in_as_over_torch(
    calls: list[list[str]], family: str, overrides: dict[str, object], tmp_path: Path
) -> None:
    """Prompts in chunks, beside decodes, and from the prefix cache; greedy and drawn."""
    make_checkpoint(family, tmp_path, dtype=torch.float16, **{**GPU_HEADS, **overrides})
    prompts = [TOKENS[:20], TOKENS[30:35], [*TOKENS[:18], 9]]
    samplings = [
        SamplingParams(max_tokens=5, temperature=0.0),
        SamplingParams(max_tokens=6, temperature=1.0, top_p=0.9, seed=1),
        SamplingParams(max_tokens=4, temperature=0.0, presence_penalty=0.5, logprobs=2),
    ]
    outputs = {}
    for backend in ("torch", "flashinfer"):
        config = EngineConfig(
            model_dir=str(tmp_path),
            device="cpu",
            dtype="float16",
            attention_backend=backend,
            max_model_len=64,
            num_pages=12,
            max_num_seqs=3,
            max_num_batched_tokens=13,
            enforce_eager=True,
            num_threads=1,
        )
        built = create_runner(config)
        served = serve(built, prompts, samplings, arrive_every=2)
        built.runner.close()
        outputs[backend] = served.outputs
        assert built.info.attention_backend == backend
    assert outputs["flashinfer"] == outputs["torch"]
    assert all(set(each) >= {"xqa", "fa2", "fa3"} for each in calls)


def test_8_bit_keys_and_values_change_logits_a_little_and_not_with_the_chunks(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, dtype=torch.bfloat16)
    exact = engine_logits(tmp_path, TOKENS, "torch")
    stored = engine_logits(tmp_path, TOKENS, "torch", kv_cache_dtype="fp8")
    chunked = engine_logits(tmp_path, TOKENS, "torch", chunk=7, kv_cache_dtype="fp8_e4m3")
    torch.testing.assert_close(chunked, stored, atol=0.1, rtol=0.02)
    difference = (stored - exact).norm() / exact.norm()
    assert 1e-3 < difference < 0.1


def test_8_bit_keys_and_values_take_half_the_memory(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, dtype=torch.bfloat16)
    sizes = {}
    for dtype in ("auto", "bfloat16", "fp8"):
        config = EngineConfig(
            model_dir=str(tmp_path),
            device="cpu",
            attention_backend="torch",
            kv_cache_dtype=dtype,
            num_pages=40,
            max_num_seqs=2,
            num_threads=1,
        )
        built = create_runner(config)
        outputs = serve(built, [TOKENS[:20]], SamplingParams(max_tokens=4, temperature=0.0)).outputs
        built.runner.close()
        assert len(outputs[0]) == 4
        sizes[built.info.kv_cache_dtype] = built.info.kv_cache_bytes
    assert sizes == {"bfloat16": 2 * sizes["float8_e4m3fn"], "float8_e4m3fn": sizes["float8_e4m3fn"]}


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_8_bit_keys_and_values_are_refused_where_the_kernels_lack_them(backend: str, tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    config = EngineConfig(
        model_dir=str(tmp_path), device="cpu", attention_backend=backend, kv_cache_dtype="fp8"
    )
    with pytest.raises(ConfigurationError, match=r"--kv-cache-dtype fp8: .* --attention-backend torch"):
        create_runner(config)


def test_flashinfer_is_refused_on_a_cpu(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    config = EngineConfig(model_dir=str(tmp_path), device="cpu", attention_backend="flashinfer")
    with pytest.raises(ConfigurationError, match="--attention-backend: back end 'flashinfer' cannot run on"):
        create_runner(config)


def test_a_missing_or_other_flashinfer_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(ValueError, match=r'pip install "penstock\[cuda\]"'):
        select.select_ops("auto", torch.device("cuda"))
    with pytest.raises(ValueError, match=r"penstock\[cuda\]"):
        select.select_attention("flashinfer", torch.device("cuda"), AttentionSpec(4, 2, 64, 16, 0.1))
