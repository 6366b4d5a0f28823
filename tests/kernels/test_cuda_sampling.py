"""Draws by the Triton kernel, interpreted: the same tokens as the oracle's at points all over the unit interval.

`test_sampling.py` has the definitions written out and the large vocabularies, for a GPU too.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from penstock.kernels.sampling.interface import SamplingParameters
from penstock.kernels.sampling.reference import TorchSampling

ROWS = [  # temperature, top_k, top_p, min_p
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.7, 20, 1.0, 0.0),
    (1.1, 0, 0.95, 0.0),
    (1.0, 0, 0.9999, 0.0),
    (1.0, 0, 1.0, 0.05),
    (1.3, 300, 0.9, 0.0),
    (1.0, 400, 0.8, 0.01),
    (1.0, 1, 1.0, 0.0),
    (1e-3, 0, 1e-6, 0.0),
    (1e4, 5, 0.5, 0.0),
]
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"]
)


@pytest.fixture
def standin() -> TorchSampling:
    from penstock.kernels.cuda.sampling import CudaSampling

    return CudaSampling()


def parameters(rows: list[tuple[float, int, float, float]]) -> SamplingParameters:
    temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    greedy = np.array(temperature) == 0
    return SamplingParameters(
        temperature=torch.tensor(temperature),
        top_k=torch.tensor(top_k, dtype=torch.int32),
        top_p=torch.tensor(top_p),
        min_p=torch.tensor(min_p),
        greedy=greedy,
        truncated=~greedy & ((np.array(top_k) > 0) | (np.array(top_p) < 1)),
    )


def case(vocab: int, dtype: torch.dtype) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    slots = np.arange(2 * len(ROWS), dtype=np.int32) % len(ROWS)
    logits = 2.0 * torch.randn(len(slots), vocab, generator=torch.Generator().manual_seed(vocab))
    return logits.to(dtype), slots, np.random.default_rng(vocab).random(len(slots))


@DTYPES
@pytest.mark.parametrize("vocab", [2, 700])
def test_tokens_are_those_of_the_oracle(standin: TorchSampling, vocab: int, dtype: torch.dtype) -> None:
    logits, slots, uniform = case(vocab, dtype)
    tokens = standin.sample(logits, parameters(ROWS), slots, uniform)
    assert tokens.dtype == torch.int32
    assert tokens.tolist() == TorchSampling().sample(logits, parameters(ROWS), slots, uniform).tolist()


def test_a_row_gets_the_same_token_alone_in_any_batch_and_from_any_place(standin: TorchSampling) -> None:
    logits, slots, uniform = case(700, torch.bfloat16)
    how = parameters(ROWS)
    together = standin.sample(logits, how, slots, uniform).tolist()
    for i in range(0, len(slots), 7):
        one = slice(i, i + 1)
        assert standin.sample(logits[one], how, slots[one], uniform[one]).tolist() == [together[i]]
    order = np.random.default_rng(1).permutation(len(slots)).astype(np.int32)[:7]
    picked = standin.sample(logits, how, slots[order], uniform[order], order)
    assert picked.tolist() == [together[i] for i in order]
    wide = torch.zeros(len(slots), 713, dtype=logits.dtype)
    wide[:, 5:705] = logits
    assert standin.sample(wide[:, 5:705], how, slots, uniform).tolist() == together


@DTYPES
def test_all_of_what_ties_with_the_last_one_kept_is_kept(standin: TorchSampling, dtype: torch.dtype) -> None:
    """Two tokens stand above five equal ones (a zero of either sign among them), of which top-k takes one, top-p part."""
    row = torch.full((90,), -9.0, dtype=dtype)
    row[[7, 80]] = 3.0
    row[[1, 20, 21, 50, 89]] = torch.tensor([0.0, -0.0, 0.0, -0.0, 0.0], dtype=dtype)
    points = (np.arange(14) + 0.5) / 14
    slots = np.zeros(14, np.int32)
    for how in ((9.0, 3, 1.0, 0.0), (9.0, 0, 0.15, 0.0)):
        tokens = standin.sample(row.expand(14, -1), parameters([how]), slots, points).tolist()
        assert set(tokens) == {1, 7, 20, 21, 50, 80, 89}
        assert tokens == sorted(tokens)


def test_uniform_numbers_at_the_ends_give_tokens_that_are_kept(standin: TorchSampling) -> None:
    row = torch.full((5_000,), float("-inf"))
    row[[40, 4_500]] = 1.0
    ends = np.array([0.0, 2.0**-53, 0.5 - 2.0**-53, 0.5, 1 - 2.0**-53])
    for how in ((1.0, 0, 1.0, 0.0), (1.0, 2, 1.0, 0.0), (1.0, 0, 0.99, 0.5)):
        tokens = standin.sample(row.expand(5, -1), parameters([how]), np.zeros(5, np.int32), ends)
        assert tokens.tolist() == [40, 40, 40, 4_500, 4_500]


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_nothing_that_is_no_number_is_drawn(standin: TorchSampling) -> None:
    hows = [(t, k, p, 0.0) for t in (0.0, 1.0) for k in (0, 2) for p in (0.9, 1.0)]
    slots, uniform = np.arange(len(hows), dtype=np.int32), np.full(len(hows), 0.999)
    logits = torch.zeros(len(hows), 900)
    logits[:, ::2] = float("nan")
    assert all(token % 2 for token in standin.sample(logits, parameters(hows), slots, uniform).tolist())
    logits[:, 77] = float("inf")
    assert standin.sample(logits, parameters(hows), slots, uniform).tolist() == [77] * len(hows)
    logits[:] = float("-inf")
    assert standin.sample(logits, parameters(hows), slots, uniform).tolist() == [0] * len(hows)
