"""The next token, penalties and log probabilities: the kernels against definitions written out in float64.

A draw is checked at many points of the unit interval, so that a case proves a whole distribution and not a few tokens.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from kernel_targets import make_sampling
from penstock.kernels.cpu.library import Library
from penstock.kernels.cpu.sampling import CpuSampling
from penstock.kernels.sampling.interface import Penalties, Sampling, SamplingParameters
from penstock.kernels.sampling.reference import TorchSampling

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
# Of sums in float32, relative to the whole.
ROUNDING, ROUNDING_OF_OTHERS = {CpuSampling: 4e-6}, 3e-5
Float64 = npt.NDArray[np.float64]


@pytest.fixture
def cpu(library: Library) -> CpuSampling:
    return CpuSampling(library)


@pytest.fixture(params=["cpu", "torch", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest, library: Library) -> Sampling:
    return make_sampling(request.param, library)


@dataclass(frozen=True)
class How:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def parameters(hows: list[How]) -> SamplingParameters:
    """Slot i draws as hows[i]."""
    greedy = np.array([how.temperature == 0 for how in hows])
    return SamplingParameters(
        temperature=torch.tensor([float(how.temperature) for how in hows]),
        top_k=torch.tensor([how.top_k for how in hows], dtype=torch.int32),
        top_p=torch.tensor([float(how.top_p) for how in hows]),
        min_p=torch.tensor([float(how.min_p) for how in hows]),
        greedy=greedy,
        truncated=~greedy & np.array([how.top_k > 0 or how.top_p < 1 for how in hows]),
    )


def kept_weights(row: torch.Tensor, how: How, top_p: float) -> Float64:
    """(V,) what is left of each token's weight, by sorting."""
    logits = row.double().numpy()
    weights = np.exp((logits - logits.max()) / np.float32(how.temperature))
    kept = logits > -np.inf
    if 0 < how.top_k < len(logits):
        kept &= logits >= np.sort(logits)[-how.top_k]
    if how.top_p < 1:
        order = np.argsort(-logits, kind="stable")
        sorted_weights = np.where(kept, weights, 0.0)[order]
        before = sorted_weights.cumsum() - sorted_weights
        needed = (before < top_p * sorted_weights.sum()) & kept[order]
        kept &= logits >= logits[order][needed].min()
    if how.min_p > 0:
        least = logits.max() + float(np.float32(how.temperature)) * np.log(float(np.float32(how.min_p)))
        kept &= logits >= np.float32(least)
    return np.where(kept, weights, 0.0)


def follows_the_definition(kernels: Sampling, row: torch.Tensor, how: How, points: int = 300) -> bool:
    """Does `kernels` give for each of many uniform numbers the token whose part of the CDF holds it?

    The share that top-p asks for may be met by one token more or less where the sums differ by their rounding.
    """
    uniform = (np.arange(points) + 0.5) / points
    slots = np.zeros(points, np.int32)
    tokens = kernels.sample(row.expand(points, -1), parameters([how]), slots, uniform).numpy()
    exact, rounding = float(np.float32(how.top_p)), ROUNDING.get(type(kernels), ROUNDING_OF_OTHERS)
    for top_p in (exact, exact * (1 + rounding), exact * (1 - rounding)):
        weights = kept_weights(row, how, top_p)
        ends = weights.cumsum() / weights.sum()
        begins = ends - weights / weights.sum()
        inside = (uniform >= begins[tokens] - rounding) & (uniform <= ends[tokens] + rounding)
        if (inside & (weights[tokens] > 0)).all():
            return True
    return False


def random_row(random: np.random.Generator, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    """(vocab,) flat or peaked, with ties, masks, an outlier, or in order."""
    values = random.standard_normal(vocab) * random.choice([0.0, 1e-4, 0.1, 1.0, 3.0, 12.0])
    match random.integers(6):
        case 1:
            values = values.round()
        case 2:
            values[random.random(vocab) < random.choice([0.1, 0.9, 0.999])] = -np.inf
            values[random.integers(vocab)] = 1.0
        case 3:
            values[random.integers(vocab)] += 30.0
        case 4:
            values = np.sort(values)
        case 5:
            values[: vocab // 2] = -1e30  # what allowed_token_ids rules out
    return torch.from_numpy(values).to(dtype)


VOCABULARIES = [1, 2, 7, 16, 17, 100, 1023, 1024, 1025, 4096, 4097, 5000, 8200, 20_011, 33_001]


@DTYPES
@pytest.mark.parametrize("seed", range(4))
def test_draws_are_those_of_the_definition_for_any_row_and_parameters(
    cpu: CpuSampling, dtype: torch.dtype, seed: int
) -> None:
    random = np.random.default_rng(seed)
    for vocab in VOCABULARIES * 8:
        row = random_row(random, vocab, dtype)
        how = How(
            temperature=float(random.choice([1e-3, 0.1, 0.7, 1.0, 2.0, 1e4])),
            top_k=int(
                random.choice([0, 0, 1, 5, 50, vocab // 16 + 1, vocab // 3, vocab - 1, vocab, vocab + 9])
            ),
            top_p=float(random.choice([1.0, 1e-6, 0.3, 0.9, 0.999, 0.9999])),
            min_p=float(random.choice([0.0, 0.0, 0.01, 0.3, 1.0])),
        )
        assert follows_the_definition(cpu, row, how), (vocab, how)


@pytest.mark.parametrize("spread", [0.3, 4.0])
@pytest.mark.parametrize(
    "how",
    [
        How(),
        How(top_k=50),
        How(top_k=3_000),
        How(top_k=60_000),
        How(top_p=0.9),
        How(top_p=0.3),
        How(top_p=0.9999),
        How(min_p=0.05),
        How(0.8, 50, 0.9, 0.05),
        How(1.3, 60_000, 0.8),
        How(1.0, 0, 0.9, 0.3),
    ],
    ids=str,
)
def test_draws_are_those_of_the_definition_in_a_large_vocabulary(
    kernels: Sampling, how: How, spread: float
) -> None:
    random = np.random.default_rng(0)
    for dtype in (torch.float32, torch.bfloat16):
        row = torch.from_numpy(random.standard_normal(151_936) * spread).to(dtype)
        assert follows_the_definition(
            kernels, row, how, points=3 if isinstance(kernels, TorchSampling) else 40
        )


def test_a_sample_that_misleads_costs_time_but_no_token(cpu: CpuSampling) -> None:
    """The bounds come from evenly spaced logits; here those say nothing about the others."""
    vocab, lanes = 65_536, 16
    vectors = 2048 // lanes
    seen = (np.arange(vectors)[:, None] * (vocab - lanes) // vectors + np.arange(lanes)).ravel()
    random = np.random.default_rng(5)
    for offset in (-4.0, 4.0):
        values = random.standard_normal(vocab)
        values[seen] += offset
        row = torch.from_numpy(values).float()
        for how in (
            How(top_p=0.5),
            How(top_p=0.95),
            How(top_k=3_000),
            How(top_k=30_000),
            How(1.0, 40_000, 0.7, 0.1),
        ):
            assert follows_the_definition(cpu, row, how), (offset, how)


@pytest.mark.parametrize("top_k", [5, 300])
def test_top_p_is_a_share_of_what_top_k_leaves(kernels: Sampling, top_k: int) -> None:
    """Of a flat row top-k takes a part: top-p of the whole would keep more of it."""
    row = torch.linspace(1.0, 0.0, 700)
    how = How(top_k=top_k, top_p=0.5)
    assert follows_the_definition(kernels, row, how, points=60)
    assert np.count_nonzero(kept_weights(row, how, 0.5)) <= top_k // 2 + 1


@DTYPES
def test_uniform_numbers_at_the_ends_give_tokens_that_are_kept(kernels: Sampling, dtype: torch.dtype) -> None:
    row = torch.full((5_000,), float("-inf"), dtype=dtype)
    row[[40, 4_000]] = 1.0
    ends = np.array([0.0, 2.0**-53, 0.5 - 2.0**-53, 0.5, 1 - 2.0**-53])
    for how in (How(), How(top_k=2), How(top_p=0.99), How(min_p=0.5)):
        tokens = kernels.sample(row.expand(5, -1), parameters([how]), np.zeros(5, np.int32), ends)
        assert tokens.tolist() == [40, 40, 40, 4_000, 4_000]


@DTYPES
@pytest.mark.parametrize("vocab", [1, 5, 1_000, 40_000])
def test_the_only_token_that_is_not_forbidden_is_drawn(
    kernels: Sampling, vocab: int, dtype: torch.dtype
) -> None:
    hows = [How(t, k, p, m) for t in (0, 1e-3, 1, 1e30) for k in (0, 1, 3) for p in (0.1, 1) for m in (0, 1)]
    slots = np.arange(len(hows), dtype=np.int32)
    for token in {0, vocab // 2, vocab - 1}:
        logits = torch.full((len(hows), vocab), float("-inf"), dtype=dtype)
        logits[:, token] = -3.0
        for point in (0.0, 1 - 2.0**-53):
            uniform = np.full(len(hows), point)
            assert kernels.sample(logits, parameters(hows), slots, uniform).tolist() == [token] * len(hows)


def test_nothing_that_is_no_number_is_drawn_or_reported(cpu: CpuSampling) -> None:
    hows = [How(t, k, p) for t in (0, 1) for k in (0, 2, 3_000) for p in (0.9, 1)]
    slots, uniform = np.arange(len(hows), dtype=np.int32), np.full(len(hows), 0.999)
    logits = torch.zeros(len(hows), 9_000)
    logits[:, ::2] = float("nan")
    assert all(token % 2 for token in cpu.sample(logits, parameters(hows), slots, uniform).tolist())
    logits[:, 77] = float("inf")
    assert cpu.sample(logits, parameters(hows), slots, uniform).tolist() == [77] * len(hows)
    assert not any(part.isnan().any() for part in cpu.score(logits[:2], torch.tensor([77, 1]), 9_000))
    logits[:] = float("-inf")
    assert cpu.sample(logits, parameters(hows), slots, uniform).tolist() == [0] * len(hows)
    assert cpu.argmax(logits).tolist() == [0] * len(hows)


MIXED = [
    How(0.0),
    How(1.0),
    How(0.7, top_k=20),
    How(1.1, top_p=0.95),
    How(1.0, top_p=0.9999),
    How(1.0, min_p=0.05),
    How(1.3, top_k=3_000, top_p=0.9),
    How(1.0, top_k=30_000, top_p=0.8, min_p=0.01),
]


def mixed_case(vocab: int, dtype: torch.dtype) -> tuple[torch.Tensor, npt.NDArray[np.int32], Float64]:
    rows = 3 * len(MIXED)
    logits = 2.0 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab))
    slots = np.arange(rows, dtype=np.int32) % len(MIXED)
    return logits.to(dtype), slots, np.random.default_rng(vocab).random(rows)


@DTYPES
@pytest.mark.parametrize("vocab", [700, 40_003])
def test_a_row_gets_the_same_token_alone_in_any_batch_and_from_any_place(
    kernels: Sampling, vocab: int, dtype: torch.dtype
) -> None:
    logits, slots, uniform = mixed_case(vocab, dtype)
    how = parameters(MIXED)
    together = kernels.sample(logits, how, slots, uniform).tolist()
    for i in range(len(slots)):
        one = slice(i, i + 1)
        assert kernels.sample(logits[one], how, slots[one], uniform[one]).tolist() == [together[i]]
    order = np.random.default_rng(1).permutation(len(slots)).astype(np.int32)[:17]
    picked = kernels.sample(logits, how, slots[order], uniform[order], order)
    assert picked.tolist() == [together[i] for i in order]
    wide = torch.zeros(len(slots), vocab + 13, dtype=dtype)
    wide[:, 5 : 5 + vocab] = logits
    assert kernels.sample(wide[:, 5 : 5 + vocab], how, slots, uniform).tolist() == together


WITH_THREADS = """
import sys, torch
threads = int(sys.argv[1])
torch.set_num_threads(threads)
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/.."]
from test_sampling import CpuSampling, MIXED, mixed_case, parameters
from penstock.kernels.cpu.library import load
library = load()
assert library.quick["threads"]() == threads
kernels = CpuSampling(library)
for dtype in (torch.float32, torch.bfloat16):
    logits, slots, uniform = mixed_case(40_003, dtype)
    scores = kernels.score(logits, torch.arange(len(slots)), 5)
    for first in range(0, len(slots), 2):  # few rows are cut into pieces
        part = slice(first, first + 2)
        print(kernels.sample(logits[part], parameters(MIXED), slots[part], uniform[part]).tolist())
        print([x.tolist() for x in kernels.score(logits[part], torch.arange(len(slots))[part], 5)])
    print(kernels.sample(logits, parameters(MIXED), slots, uniform).tolist(), [x.tolist() for x in scores])
    print(kernels.argmax(logits).tolist(), kernels.argmax(logits[:1]).tolist())
"""


def test_results_do_not_depend_on_the_number_of_threads(library: Library) -> None:
    here = __file__.rpartition("/")[0]
    outputs = [
        subprocess.run(
            [sys.executable, "-c", WITH_THREADS, str(threads), here], check=True, capture_output=True
        ).stdout
        for threads in (1, 3)
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0]


@DTYPES
@pytest.mark.parametrize("vocab", [1, 7, 512, 513, 5_000, 32_768, 151_936])
def test_argmax_is_the_first_of_the_largest(kernels: Sampling, vocab: int, dtype: torch.dtype) -> None:
    random = np.random.default_rng(vocab)
    logits = torch.from_numpy(random.standard_normal((6, vocab))).to(dtype)
    logits[1] = logits[1].round()
    logits[2] = -3.0
    logits[3, : vocab // 2] = float("-inf")
    logits[4, -1] = logits[4, vocab // 3] = 50.0
    logits[5] = -0.0
    logits[5, vocab // 2] = 0.0
    expected = [int(row.argmax()) for row in logits.double().numpy()]
    tokens = kernels.argmax(logits)
    assert tokens.dtype == torch.int32
    assert tokens.tolist() == expected
    assert [int(kernels.argmax(logits[i : i + 1])) for i in range(6)] == expected
    assert kernels.argmax(logits[::2]).tolist() == expected[::2]
    assert kernels.argmax(logits[:0]).shape == (0,)


@pytest.mark.parametrize("vocab", [5, 1_000, 33_000])
def test_penalties_follow_their_definition(kernels: Sampling, vocab: int) -> None:
    random = np.random.default_rng(vocab)
    counts = random.integers(0, 4, (5, vocab)) * (random.random((5, vocab)) < 0.3)
    prompt = random.random((5, vocab)) < 0.2
    logits = random.standard_normal((3, vocab)).astype(np.float32)
    strengths = (
        random.random((3, 4)).astype(np.float32) + 0.5
    )  # repetition, frequency, presence over four slots
    slots, rows = np.array([3, 0, 2], np.int32), np.array([4, 1, 0], np.int32)
    expected = logits.astype(np.float64)
    for i, (slot, row) in enumerate(zip(slots, rows, strict=True)):
        repetition, frequency, presence = strengths[:, slot].astype(np.float64)
        came = counts[row] > 0
        expected[i] = np.where(
            came | prompt[row],
            np.where(expected[i] > 0, expected[i] / repetition, expected[i] * repetition),
            expected[i],
        )
        expected[i] -= frequency * counts[row] + presence * came
    penalties = Penalties(
        *map(torch.from_numpy, strengths),
        output_counts=torch.from_numpy(counts.astype(np.int32)),
        prompt_has=torch.from_numpy(prompt),
    )
    penalised = torch.from_numpy(logits.copy())
    kernels.penalise(penalised, penalties, slots, rows)
    torch.testing.assert_close(penalised.double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


@DTYPES
@pytest.mark.parametrize("vocab", [1, 20, 1_030, 40_000])
def test_scores_are_those_of_a_softmax_in_float64(kernels: Sampling, vocab: int, dtype: torch.dtype) -> None:
    random = np.random.default_rng(vocab)
    logits = torch.from_numpy(random.standard_normal((5, vocab)) * [[0.1], [1], [4], [4], [30]]).to(dtype)
    logits[3, torch.from_numpy(random.random(vocab) < 0.5)] = float("-inf")
    logits[3, 0] = 1.0
    tokens = torch.from_numpy(random.integers(0, vocab, 5))
    exact = logits.double().numpy()
    expected = exact - exact.max(-1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(-1, keepdims=True))
    for k in {0, 1, min(vocab, 20), vocab}:
        logprobs, ranks, top_ids, top_logprobs = kernels.score(logits, tokens, k)
        at = np.arange(5)
        np.testing.assert_allclose(logprobs, expected[at, tokens], atol=2e-5)
        above = exact > exact[at, tokens][:, None]
        assert ranks.tolist() == (above.sum(-1) + 1).tolist()
        assert top_ids.shape == top_logprobs.shape == (5, k)
        best = np.take_along_axis(expected, top_ids.numpy().astype(np.intp), -1)
        np.testing.assert_allclose(top_logprobs, best, atol=2e-5)
        np.testing.assert_array_equal(best, -np.sort(-expected, axis=-1)[:, :k])
        assert all(len(set(ids)) == k for ids in top_ids.tolist())
    rows = np.array([4, 2], np.int32)
    whole, part = kernels.score(logits, tokens, 1), kernels.score(logits, tokens[[4, 2]], 1, rows)
    assert all(torch.equal(a[[4, 2]], b) for a, b in zip(whole, part, strict=True))


def test_of_ties_among_the_best_the_lower_id_comes_first(cpu: CpuSampling) -> None:
    logits = torch.from_numpy(np.random.default_rng(2).integers(0, 5, (3, 20_000)).astype(np.float32))
    for k in (3, 500, 20_000):
        _, _, top_ids, _ = cpu.score(logits, torch.zeros(3, dtype=torch.int32), k)
        expected = np.argsort(-logits.numpy(), axis=-1, kind="stable")[:, :k]
        assert top_ids.tolist() == expected.tolist()


def test_dtypes_the_kernels_lack_go_through_torch(cpu: CpuSampling) -> None:
    logits = torch.randn(4, 600, generator=torch.Generator().manual_seed(0)).half()
    how, slots, uniform = parameters(MIXED), np.arange(4, dtype=np.int32), np.linspace(0.1, 0.9, 4)
    reference = TorchSampling()
    assert torch.equal(cpu.argmax(logits), reference.argmax(logits))
    assert torch.equal(cpu.sample(logits, how, slots, uniform), reference.sample(logits, how, slots, uniform))
    tokens = torch.arange(4)
    for mine, theirs in zip(cpu.score(logits, tokens, 3), reference.score(logits, tokens, 3), strict=True):
        assert torch.equal(mine, theirs)
