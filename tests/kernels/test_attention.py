"""The attention of every back end against the torch oracle, and the oracle against torch's own attention."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from attention_batches import Target, check_against_oracle, make_batch, make_tensors, run, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.kernels.attention.cpu_backend import CpuAttention
from penstock.kernels.attention.interface import AttentionSpec
from penstock.kernels.attention.torch_backend import TorchAttention, attend
from penstock.kernels.cpu.library import Library

CPU = [
    pytest.param(("cpu", dtype), id=f"cpu-{name}")
    for dtype, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16"))
]
CUDA = [
    pytest.param(("cuda", dtype), id=f"cuda-{name}", marks=pytest.mark.gpu)
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "f16"))
]


MIXED = [(0, 1), (37, 1), (300, 1), (0, 5), (63, 70), (130, 33)]


HEADS = pytest.mark.parametrize("heads", [(4, 4), (4, 2), (8, 2), (16, 2), (8, 1), (3, 1)])


@pytest.mark.parametrize("target", CPU)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@HEADS
def test_every_head_shape_matches_the_oracle(
    library: Library, heads: tuple[int, int], head_dim: int, target: Target
) -> None:
    check_against_oracle(library, target, spec_of(heads, head_dim), MIXED)


@pytest.mark.parametrize("target", CUDA)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("rows", [MIXED, MIXED[:3], [(0, 5), (0, 90)]], ids=["mixed", "decodes", "fresh"])
@HEADS
def test_every_head_shape_of_the_gpus_kernels_matches_the_oracle(
    library: Library, heads: tuple[int, int], rows: list[tuple[int, int]], head_dim: int, target: Target
) -> None:
    check_against_oracle(library, target, spec_of(heads, head_dim), rows)


@pytest.mark.parametrize("target", [*CPU, *CUDA])
@pytest.mark.parametrize("page_size", [1, 16, 32, 48])
@pytest.mark.parametrize("window", [None, 1, 40, 64, 600])
@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_every_page_size_window_and_soft_cap_matches_the_oracle(
    library: Library, page_size: int, window: int | None, soft_cap: float | None, target: Target
) -> None:
    rows = [(0, 1), (511, 1), (512, 1), (1100, 1), (0, 3), (500, 40)]
    for some in (rows, rows[:4]):
        check_against_oracle(library, target, spec_of((4, 2), 64, page_size, window, soft_cap), some)


@pytest.mark.parametrize("target", CPU)
@pytest.mark.parametrize("first", [1, 3, 64, 515])
@pytest.mark.parametrize("window", [None, 40])
def test_keys_before_the_first_one_are_not_seen(
    library: Library, window: int | None, first: int, target: Target
) -> None:
    spec = replace(spec_of(window=window), first=first)
    rows = [(first, 1), (first + 1, 1), (700, 1), (0, first + 9), (first + 2, 70)]
    check_against_oracle(library, target, spec, rows)


def test_the_oracle_sees_what_attention_without_the_first_keys_sees() -> None:
    spec = AttentionSpec(2, 1, 8, 4, 0.5, first=3)
    q, k, v = (
        torch.randn(12, heads, 8, generator=torch.Generator().manual_seed(heads)) for heads in (2, 1, 1)
    )
    out = attend(q, k, v, 0, spec)
    expected = attend(q[3:], k[3:], v[3:], 0, replace(spec, first=0))
    torch.testing.assert_close(out[3:], expected)
    assert out[:3].isfinite().all()


@settings(max_examples=30, deadline=None)
@given(
    decodes=st.lists(st.integers(0, 1500), max_size=6),
    prefills=st.lists(st.tuples(st.integers(0, 700), st.integers(1, 150)), max_size=3),
    page_size=st.sampled_from([1, 16, 32]),
    heads=st.sampled_from([(2, 2), (4, 1), (6, 2)]),
    window=st.none() | st.integers(1, 700),
    target=st.sampled_from([("cpu", torch.float32), ("cpu", torch.bfloat16)]),
    seed=st.integers(0, 1000),
)
def test_random_ragged_batches_match_the_oracle(
    library: Library,
    decodes: list[int],
    prefills: list[tuple[int, int]],
    page_size: int,
    heads: tuple[int, int],
    window: int | None,
    target: Target,
    seed: int,
) -> None:
    rows = [(start, 1) for start in decodes] + prefills or [(0, 1)]
    check_against_oracle(library, target, spec_of(heads, 32, page_size, window), rows, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("window", [None, 100])
def test_a_query_gets_the_same_bits_alone_in_a_batch_in_chunks_and_as_decode(
    library: Library, window: int | None, dtype: torch.dtype
) -> None:
    """2 KV heads, one row of 1300 tokens: whole, then in uneven chunks ending in decodes, then among others."""
    spec = spec_of((4, 2), 64, 16, window)
    batch, num_pages = make_batch([(0, 1300)], spec.page_size)
    tensors = make_tensors(spec, batch, num_pages, dtype)
    whole = run(CpuAttention(spec, library), batch, tensors)

    pages = {name: torch.zeros_like(tensors[name]) for name in ("k_pages", "v_pages")}
    bounds = [0, 7, 64, 500, 1297, 1298, 1299, 1300]
    others = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(9)).to(dtype)
    for begin, end in itertools.pairwise(bounds):
        chunk, _ = make_batch([(3, 1), (0, 1), (begin, end - begin)], spec.page_size)
        spare = int(batch.page_table[(int(batch.slots[0]) + 1) % 3, 0])
        chunk.page_table = torch.full((5, batch.page_table.shape[1]), spare, dtype=torch.int32)
        chunk.page_table[chunk.slots[2]] = batch.page_table[batch.slots[0]]
        parts = {
            "q": torch.cat((others, tensors["q"][begin:end])),
            "k": torch.cat((others[:, :2], tensors["k"][begin:end])),
            "v": torch.cat((others[:, 2:], tensors["v"][begin:end])),
        }
        out = run(CpuAttention(spec, library), chunk, {**parts, **pages})
        assert torch.equal(out[2:], whole[begin:end]), f"tokens {begin} to {end}"


def test_long_context_split_over_threads_gives_the_same_bits(library: Library) -> None:
    spec = spec_of((2, 1), 64)
    rows = [(6000, 1)]  # one KV head: the threads share its parts
    batch, num_pages = make_batch(rows, spec.page_size)
    tensors = make_tensors(spec, batch, num_pages, torch.float32)
    alone = run(CpuAttention(spec, library), batch, tensors)
    crowd, crowd_pages = make_batch([*rows, *[(6000, 1)] * 16], spec.page_size)
    crowd_tensors = make_tensors(spec, crowd, crowd_pages, torch.float32)
    used = 6001 // spec.page_size + 1
    for name in ("k_pages", "v_pages"):
        source = batch.page_table[batch.slots[0], :used].long()
        crowd_tensors[name][crowd.page_table[crowd.slots[0], :used].long()] = tensors[name][source]
    for name in ("q", "k", "v"):
        crowd_tensors[name][0] = tensors[name][0]
    assert torch.equal(run(CpuAttention(spec, library), crowd, crowd_tensors)[0], alone[0])


def test_stale_garbage_beyond_the_context_is_never_read(library: Library) -> None:
    spec = spec_of()
    batch, num_pages = make_batch([(20, 1), (3, 40)], spec.page_size)
    tensors = make_tensors(spec, batch, num_pages, torch.float32)
    poisoned = {name: tensor.clone() for name, tensor in tensors.items()}
    for row, (start, length) in enumerate([(20, 1), (3, 40)]):
        end = start + length
        last = int(batch.page_table[batch.slots[row], (end - 1) // spec.page_size])
        for name in ("k_pages", "v_pages"):
            poisoned[name][last, (end - 1) % spec.page_size + 1 :] = float("nan")
    backend = CpuAttention(spec, library)
    assert torch.equal(run(backend, batch, poisoned), run(backend, batch, tensors))


def test_dtypes_the_kernels_lack_go_through_torch(library: Library) -> None:
    spec = spec_of()
    batch, num_pages = make_batch([(20, 1), (3, 40)], spec.page_size)
    tensors = make_tensors(spec, batch, num_pages, torch.float16)
    copy = {name: tensor.clone() for name, tensor in tensors.items()}
    assert torch.equal(
        run(CpuAttention(spec, library), batch, tensors), run(TorchAttention(spec), batch, copy)
    )


def test_the_oracle_agrees_with_torch_scaled_dot_product_attention() -> None:
    spec = spec_of((6, 2), 32, 4)
    batch, num_pages = make_batch([(0, 11)], spec.page_size)
    tensors = make_tensors(spec, batch, num_pages, torch.float32)
    q, k, v = (tensors[name].transpose(0, 1) for name in ("q", "k", "v"))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(run(TorchAttention(spec), batch, tensors), expected.transpose(0, 1))
