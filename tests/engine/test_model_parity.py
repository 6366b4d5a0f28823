"""Every family computes what transformers computes: logits, then greedy tokens through the real scheduler and runner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import engine_logits, serve
from penstock.engine.build import Built, create_runner
from penstock.scheduler.messages import EngineConfig, SamplingParams
from tiny_models import VOCAB_SIZE, make_checkpoint
from transformers import PreTrainedModel

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500_000.0,
}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
SLIDING = {"use_sliding_window": True, "sliding_window": 13, "max_window_layers": 1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek": ("deepseek_v3", {}),
    "deepseek-yarn-whole-queries": (
        "deepseek_v3",
        {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.8}, "q_lora_rank": None},
    ),
    "llama": ("llama", {}),
    "llama-mha": ("llama", {"num_key_value_heads": 4, "head_dim": 32}),
    "llama3-rope-biases-tied": (
        "llama",
        {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama-linear-rope": ("llama", {"rope_parameters": LINEAR}),
    "llama-dynamic-rope": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 128}),
    "llama-sharded": ("llama", {"max_shard_size": "60KB"}),
    "mistral-sliding": ("mistral", {"sliding_window": 13}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen2-some-layers-sliding": ("qwen2", {**SLIDING, "num_hidden_layers": 3}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3-yarn-tied-bias": (
        "qwen3",
        {"rope_parameters": YARN, "tie_word_embeddings": True, "attention_bias": True},
    ),
}
# Cases that are served, and how few pages make their requests preempt each other.
SERVED = {
    "deepseek": 26,
    "llama": 26,
    "llama3-rope-biases-tied": 26,
    "mistral-sliding": 12,
    "qwen2-some-layers-sliding": 26,
    "qwen3-yarn-tied-bias": 26,
}
GENERATOR = torch.Generator().manual_seed(7)
LONG = torch.randint(3, VOCAB_SIZE, (100,), generator=GENERATOR).tolist()
PROMPTS = [LONG[:3], LONG[:41], [*LONG[:33], 9, 8, 7], LONG[50:71], LONG[:37], LONG[60:65], LONG[:50]]
OUTPUT_TOKENS = 28


@dataclass
class Case:
    name: str
    path: Path
    reference: PreTrainedModel


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    made: dict[str, Case] = {}
    for name, (family, overrides) in CASES.items():
        path = tmp_path_factory.mktemp(name)
        made[name] = Case(name, path, make_checkpoint(family, path, **overrides))
    return made


@torch.no_grad()
def reference_greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """Without a cache: every token from a forward pass over the whole sequence."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(cases: dict[str, Case], name: str, backend: str) -> None:
    case = cases[name]
    with torch.no_grad():
        expected = case.reference(torch.tensor([LONG])).logits[0]
    whole = engine_logits(case.path, LONG, backend)
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=0)
    in_chunks = engine_logits(case.path, LONG, backend, chunk=7)
    torch.testing.assert_close(in_chunks, expected, atol=1e-4, rtol=0)


def test_the_sharded_case_has_shards(cases: dict[str, Case]) -> None:
    assert len(list(cases["llama-sharded"].path.glob("*.safetensors"))) > 2


def test_dynamic_rope_beyond_the_trained_context_follows_token_by_token_decoding(
    cases: dict[str, Case],
) -> None:
    case = cases["llama-dynamic-rope"]
    prompt = LONG[:100]
    count = 60  # passes max_position_embeddings 128
    with torch.no_grad():
        expected = case.reference.generate(
            torch.tensor([prompt]), max_new_tokens=count, do_sample=False, use_cache=True
        )
        tokens = expected[0].tolist()
        assert len(tokens) == 160
    logits = engine_logits(case.path, tokens, "torch")
    assert logits.argmax(-1)[99:-1].tolist() == tokens[100:]


@pytest.fixture(scope="module", params=["torch", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=SERVED)
def served_case(cases: dict[str, Case], request: pytest.FixtureRequest) -> Case:
    return cases[request.param]


@pytest.fixture(scope="module")
def small_engine(served_case: Case, backend: str) -> Iterator[Built]:
    """Few pages, few tokens a step: prompts are cut into uneven chunks and requests preempt each other."""
    built = create_runner(
        EngineConfig(
            model_dir=str(served_case.path),
            attention_backend=backend,
            device="cpu",
            num_threads=1,
            max_model_len=96,
            page_size=4,
            num_pages=SERVED[served_case.name],
            max_num_seqs=5,
            max_num_batched_tokens=17,
        )
    )
    yield built
    built.runner.close()


@pytest.fixture(scope="module")
def expected_outputs(served_case: Case) -> list[list[int]]:
    return [reference_greedy(served_case.reference, prompt, OUTPUT_TOKENS) for prompt in PROMPTS]


GREEDY = SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0)


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_greedy_tokens_survive_chunks_cache_hits_preemption_and_mixed_batches(
    small_engine: Built, expected_outputs: list[list[int]], steps_in_flight: int
) -> None:
    served = serve(small_engine, PROMPTS, GREEDY, steps_in_flight=steps_in_flight)
    assert served.outputs == expected_outputs
    # What the name claims did happen.
    groups = small_engine.scheduler_config.groups
    if any(group.kind == "full" for group in groups):  # a sliding group's pages are all taken at admission
        assert served.load.num_preemptions > 0
    assert any(0 < plan.num_decode_rows < len(plan.slots) for plan in served.plans)
    chunks = {int(n) for plan in served.plans for n in plan.lens[plan.num_decode_rows :]}
    assert len(chunks) > 3


def test_prefix_hits_give_the_same_tokens(small_engine: Built, expected_outputs: list[list[int]]) -> None:
    served = serve(small_engine, PROMPTS, GREEDY, arrive_every=30)
    assert served.outputs == expected_outputs
    assert sum(request.num_cached_tokens > 0 for request in served.requests) >= 2


def test_bfloat16_stays_close_to_float32(tmp_path: Path) -> None:
    reference = make_checkpoint("qwen3", tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = reference(torch.tensor([LONG])).logits[0]
    for name in ("torch", "cpu"):
        logits = engine_logits(tmp_path, LONG, name)
        error = (logits - expected).norm() / expected.norm()
        assert error < 0.03, f"{name}: {error:.4f}"
