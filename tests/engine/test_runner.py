"""The runner through the real scheduler: sampling that company and preemption do not change, scores, failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_runs import serve
from msgspec.structs import replace as replace_struct
from penstock.engine.build import Built, create_runner
from penstock.scheduler.messages import EngineConfig, SamplingParams
from penstock.scheduler.plan import StepPlan
from tiny_models import VOCAB_SIZE, make_checkpoint
from transformers import PreTrainedModel

MAX_TOKENS = 24
LONG = torch.randint(3, VOCAB_SIZE, (80,), generator=torch.Generator().manual_seed(3)).tolist()
PROMPTS = [LONG[:5], LONG[:47], LONG[20:50], LONG[:40], LONG[10:31], LONG[:44]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    path = tmp_path_factory.mktemp("qwen3")
    return path, make_checkpoint("qwen3", path)


def engine_config(path: Path) -> EngineConfig:
    return EngineConfig(
        model_dir=str(path),
        device="cpu",
        num_threads=1,
        max_model_len=96,
        page_size=4,
        num_pages=26,
        max_num_seqs=5,
        max_num_batched_tokens=13,
    )


@pytest.fixture(scope="module")
def built(checkpoint: tuple[Path, PreTrainedModel]) -> Iterator[Built]:
    built = create_runner(engine_config(checkpoint[0]))
    yield built
    built.runner.close()


@torch.no_grad()
def reference_logprobs(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor([tokens])).logits[0].log_softmax(-1)


SAMPLED = [
    SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, seed=11),
    SamplingParams(max_tokens=MAX_TOKENS, temperature=0.8, top_p=0.9, seed=12),
    SamplingParams(max_tokens=MAX_TOKENS, temperature=1.3, top_k=30, seed=13, frequency_penalty=0.7),
    SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, repetition_penalty=1.3),
    SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, min_p=0.02, seed=15, logit_bias={7: 3.0}),
    SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, top_p=0.99, seed=16, presence_penalty=1.0),
]


def test_sampled_tokens_are_the_same_alone_in_a_batch_and_after_preemption(built: Built) -> None:
    alone = [serve(built, [p], how).outputs[0] for p, how in zip(PROMPTS, SAMPLED, strict=True)]
    together = serve(built, PROMPTS, SAMPLED)
    assert together.load.num_preemptions > 0
    assert together.outputs == alone
    one_by_one = serve(built, PROMPTS, SAMPLED, steps_in_flight=1, arrive_every=5)
    assert one_by_one.outputs == alone


def test_another_seed_gives_other_tokens(built: Built) -> None:
    other = [replace_struct(how, seed=how.seed + 100) for how in SAMPLED]
    first, second = serve(built, PROMPTS, SAMPLED).outputs, serve(built, PROMPTS, other).outputs
    differs = [a != b for a, b in zip(first, second, strict=True)]
    assert differs == [how.temperature > 0 for how in SAMPLED]


def test_a_resumed_request_continues_as_if_undisturbed(built: Built) -> None:
    """What another engine needs to go on: prompt, tokens so far, sampling."""
    for prompt, how in zip(PROMPTS, SAMPLED, strict=True):
        whole = serve(built, [prompt], how).outputs[0]
        resumed = serve(built, [prompt + whole[:10]], how, num_prompt_tokens=[len(prompt)])
        assert resumed.outputs[0] == whole


def test_no_stop_token_before_min_tokens(built: Built) -> None:
    free = serve(built, [PROMPTS[0]], SamplingParams(max_tokens=12, temperature=0.0)).outputs[0]
    stop = free[2]
    params = SamplingParams(max_tokens=12, temperature=0.0, stop_token_ids=[stop])
    stopped = serve(built, [PROMPTS[0]], params).outputs[0]
    assert stopped == free[: free.index(stop) + 1]
    later = serve(built, [PROMPTS[0]], replace_struct(params, min_tokens=8)).outputs[0]
    assert len(later) >= 8
    assert stop not in later[:7]


def test_logit_bias_forces_and_bans(built: Built) -> None:
    params = SamplingParams(max_tokens=6, temperature=1.0, seed=1, logit_bias={99: 100.0})
    assert serve(built, [PROMPTS[0]], params).outputs[0] == [99] * 6
    free = serve(built, [PROMPTS[0]], SamplingParams(max_tokens=6, temperature=0.0)).outputs[0]
    banned = SamplingParams(max_tokens=6, temperature=0.0, logit_bias=dict.fromkeys(free, -100.0))
    assert not set(serve(built, [PROMPTS[0]], banned).outputs[0]) & set(free)


def test_logprobs_are_those_of_the_raw_model_distribution(
    built: Built, checkpoint: tuple[Path, PreTrainedModel]
) -> None:
    asked = [
        SamplingParams(max_tokens=MAX_TOKENS, temperature=0.7, top_k=5, seed=3, logprobs=4),
        SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0),
        SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, logprobs=0, presence_penalty=1.0),
        SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, seed=5, logprobs=2, prompt_logprobs=3),
        SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, prompt_logprobs=0),
        SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, prompt_logprobs=1),
    ]
    served = serve(built, PROMPTS, asked)
    assert served.load.num_preemptions > 0
    for prompt, how, output, rows in zip(PROMPTS, asked, served.outputs, served.logprobs, strict=True):
        tokens = prompt + output
        expected = reference_logprobs(checkpoint[1], tokens)
        for is_prompt, k, first, last in (
            (True, how.prompt_logprobs, 1, len(prompt)),
            (False, how.logprobs, len(prompt), len(tokens)),
        ):
            mine = [row for row in rows if row.is_prompt == is_prompt]
            if k < 0:
                assert not mine
                continue
            ids = np.concatenate([row.token_ids for row in mine])
            assert ids.tolist() == tokens[first:last], "every position once, in order"
            raw = expected[first - 1 : last - 1]
            chosen = raw[torch.arange(last - first), torch.tensor(tokens[first:last])]
            got = torch.from_numpy(np.concatenate([row.logprobs for row in mine]))
            torch.testing.assert_close(got, chosen, atol=1e-4, rtol=0)
            ranks = np.concatenate([row.ranks for row in mine])
            assert ranks.tolist() == ((raw > chosen[:, None]).sum(-1) + 1).tolist()
            top_ids = np.concatenate([row.top_ids for row in mine])
            assert top_ids.shape == (last - first, k)
            assert top_ids.tolist() == raw.topk(k).indices.tolist()
            top = torch.from_numpy(np.concatenate([row.top_logprobs for row in mine]))
            torch.testing.assert_close(top, raw.topk(k).values, atol=1e-4, rtol=0)


def simple_plan(slot: int) -> StepPlan:
    one = np.ones(1, np.int32)
    return StepPlan(
        step=0,
        slots=one * slot,
        starts=one * 0,
        lens=one,
        sample=np.array([True]),
        num_decode_rows=1,
        num_tokens=1,
    )


def test_a_failing_step_raises_from_its_own_result_only(built: Built) -> None:
    bad = built.runner.launch(simple_plan(slot=10_000))
    good = built.runner.launch(simple_plan(slot=1))
    with pytest.raises(IndexError):
        bad.result()
    assert good.result().counts.tolist() == [1]


def test_launch_returns_before_the_step_is_done(built: Built) -> None:
    """The device thread is held up; launches go through all the same."""
    gate = threading.Event()
    built.runner._thread.submit(gate.wait)
    handles = [built.runner.launch(simple_plan(slot=1)) for _ in range(3)]
    gate.set()
    assert [handle.result().counts.tolist() for handle in handles] == [[1]] * 3


def test_two_engines_of_one_seed_have_the_same_dummy_weights(
    checkpoint: tuple[Path, PreTrainedModel],
) -> None:
    config = replace_struct(engine_config(checkpoint[0]), load_format="dummy", seed=5)
    outputs = []
    for seed in (5, 5, 6):
        dummy = create_runner(replace_struct(config, seed=seed))
        outputs.append(serve(dummy, PROMPTS[:2], SamplingParams(max_tokens=8, temperature=0.0)).outputs)
        dummy.runner.close()
    assert outputs[0] == outputs[1] != outputs[2]


def test_progress_and_phases_are_reported(checkpoint: tuple[Path, PreTrainedModel]) -> None:
    seen: list[tuple[str, float]] = []
    built = create_runner(engine_config(checkpoint[0]), lambda phase, share: seen.append((phase, share)))
    built.runner.close()
    for phase in dict.fromkeys(phase for phase, _ in seen):
        shares = [share for name, share in seen if name == phase]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert list(built.info.startup_seconds) == ["config", "kernels", "weights", "kv_cache", "warm_up"]
