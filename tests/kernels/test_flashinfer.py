"""The FlashInfer back end over a stand-in that takes every call by the real signature: which kernels are called, with what,
and that the results are the oracle's. Triton's kernels are interpreted, so batches are small here; `test_attention.py`
has the large ones for a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attention_batches import check_against_oracle, make_batch, make_tensors, run, spec_of
from fake_flashinfer import FakeDevice, Trap, fake_flashinfer
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_targets import make_attention, standin_attention
from penstock.kernels.attention.interface import AttentionSpec, RotatingAttention, Rotation
from penstock.kernels.attention.torch_backend import TorchAttention
from penstock.kernels.cpu.library import Library
from penstock.kernels.reference import TorchOps

STANDIN = ("standin", torch.bfloat16)
DECODES = [(0, 1), (37, 1), (63, 1)]
FRESH = [(0, 3), (0, 18)]
MIXED = [(0, 1), (37, 1), (0, 5), (63, 7)]
E4M3 = torch.float8_e4m3fn


@pytest.mark.parametrize("rows", [DECODES, FRESH, MIXED], ids=["decodes", "fresh", "mixed"])
@pytest.mark.parametrize(("heads", "head_dim"), [((8, 2), 64), ((3, 1), 128), ((4, 4), 256)])
def test_heads_of_every_shape_match_the_oracle(
    library: Library, heads: tuple[int, int], head_dim: int, rows: list[tuple[int, int]]
) -> None:
    check_against_oracle(library, STANDIN, spec_of(heads, head_dim), rows)


@pytest.mark.parametrize("page_size", [1, 16, 48])
@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_page_sizes_windows_and_soft_caps_match_the_oracle(
    library: Library, page_size: int, window: int | None, soft_cap: float | None
) -> None:
    spec = spec_of((4, 2), 64, page_size, window, soft_cap)
    check_against_oracle(library, STANDIN, spec, [(511, 1), (0, 3), (50, 9)])
    check_against_oracle(library, STANDIN, spec, [(0, 1), (511, 1)])


@settings(max_examples=10, deadline=None)
@given(
    decodes=st.lists(st.integers(0, 5_000), max_size=4),
    prefills=st.lists(st.tuples(st.integers(0, 700), st.integers(1, 12)), max_size=2),
    page_size=st.sampled_from([1, 16, 32]),
    window=st.none() | st.integers(1, 700),
    seed=st.integers(0, 1000),
)
def test_random_ragged_batches_match_the_oracle(
    library: Library,
    decodes: list[int],
    prefills: list[tuple[int, int]],
    page_size: int,
    window: int | None,
    seed: int,
) -> None:
    rows = [(start, 1) for start in decodes] + prefills or [(0, 1)]
    check_against_oracle(library, STANDIN, spec_of((4, 1), 64, page_size, window), rows, seed)


# ------------------------------------------------------------------------------------------------ which kernel


def kernels_called(spec: AttentionSpec, rows: list[tuple[int, int]], architecture: int = 9) -> list[str]:
    backend, flashinfer, _ = standin_attention(spec, architecture)
    batch, num_pages = make_batch(rows, spec.page_size)
    run(backend, batch, make_tensors(spec, batch, num_pages, spec.dtype))
    return list(flashinfer.calls)


def test_decodes_fresh_prompts_and_the_rest_have_kernels_of_their_own() -> None:
    assert kernels_called(spec_of(), DECODES) == ["xqa"]
    assert kernels_called(spec_of(), FRESH) == ["fa3"]
    assert kernels_called(spec_of(), MIXED) == ["fa2"]
    assert kernels_called(spec_of(), [(5, 3)]) == ["fa2"]


@pytest.mark.parametrize(
    ("spec", "architecture"),
    [
        (spec_of(page_size=8), 9),
        (spec_of(soft_cap=30.0), 9),
        (spec_of(heads=(32, 1)), 9),
        (spec_of(), 8),
    ],
    ids=["small pages", "soft cap", "large groups", "an older GPU"],
)
def test_decodes_that_xqa_cannot_do_go_to_fa2(spec: AttentionSpec, architecture: int) -> None:
    assert kernels_called(spec, [(5, 1), (17, 1)], architecture) == ["fa2"]


def test_prompts_over_keys_of_8_bits_go_to_fa2_and_decodes_to_xqa() -> None:
    spec = spec_of(kv_dtype=E4M3)
    assert kernels_called(spec, FRESH) == ["fa2"]
    assert kernels_called(spec, DECODES) == ["xqa"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (spec_of(dtype=torch.float32), "float32"),
        (spec_of(head_dim=80), "not of 80"),
        (spec_of(kv_dtype=torch.float16), "float16"),
    ],
)
def test_what_no_kernel_can_do_is_refused_with_the_reason(spec: AttentionSpec, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        standin_attention(spec)


# ------------------------------------------------------------------------------------------- 8 bits, rotation


def exact_e4m3(*shape: int, seed: int) -> torch.Tensor:
    """bfloat16 numbers that 8 bits hold: Triton's interpreter rounds casts to 8 bits otherwise than a GPU."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)
    return values.to(E4M3).to(torch.bfloat16)


BOTH = pytest.mark.parametrize("target", ["standin", pytest.param("cuda", marks=pytest.mark.gpu)])


@BOTH
@pytest.mark.parametrize("rows", [DECODES, MIXED], ids=["decodes", "mixed"])
def test_keys_and_values_are_stored_in_8_bits(
    library: Library, rows: list[tuple[int, int]], target: str
) -> None:
    spec = spec_of((4, 2), kv_dtype=E4M3)
    batch, num_pages = make_batch(rows, spec.page_size)
    tensors = make_tensors(spec, batch, num_pages, torch.bfloat16)
    for seed, name in enumerate("kv"):
        tensors[name] = exact_e4m3(*tensors[name].shape, seed=seed)
    tensors["v"][0, 0, :2] = torch.tensor([1e4, -1e4])  # beyond what 8 bits hold
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    out = run(make_attention(target, spec, library), batch, tensors)
    # A GPU multiplies in 8 bits as well; the token with the outliers is left out.
    tolerance = 3e-2 if target == "standin" else 0.1
    oracle = run(TorchAttention(spec), batch, expected)
    torch.testing.assert_close(out[1:], oracle[1:], atol=tolerance, rtol=tolerance)
    for name in ("k_pages", "v_pages"):
        assert torch.equal(tensors[name].view(torch.uint8), expected[name].view(torch.uint8))
    assert sorted(tensors["v_pages"].float().flatten().tolist())[-1] == 448.0


@BOTH
@pytest.mark.parametrize("rotary_dim", [64, 16])
@pytest.mark.parametrize("with_norms", [False, True])
def test_rotation_in_the_pass_that_writes_gives_what_the_oracle_gives_in_two(
    library: Library, with_norms: bool, rotary_dim: int, target: str
) -> None:
    spec = spec_of((8, 2))
    batch, num_pages = make_batch(MIXED, spec.page_size)
    tensors = make_tensors(spec, batch, num_pages, torch.bfloat16)
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    angles = torch.randn(100, rotary_dim // 2, generator=torch.Generator().manual_seed(3))
    norms = [torch.rand(64).bfloat16() + 0.5 for _ in "qk"] if with_norms else [None, None]
    rotation = Rotation(torch.cat((angles.cos(), angles.sin()), 1), batch.positions, *norms)
    backend = make_attention(target, spec, library)
    assert isinstance(backend, RotatingAttention)
    backend.plan(batch)
    before = tensors["q"].clone()
    out = backend.rotate_and_run(**tensors, rotation=rotation)
    assert torch.equal(tensors["q"], before)
    q, k = TorchOps().rotary(expected["q"], expected["k"], rotation.cos_sin, batch.positions, *norms)
    torch.testing.assert_close(
        out, run(TorchAttention(spec), batch, {**expected, "q": q, "k": k}), atol=5e-2, rtol=3e-2
    )
    torch.testing.assert_close(tensors["k_pages"], expected["k_pages"], atol=4e-2, rtol=2e-2)
    assert torch.equal(tensors["v_pages"], expected["v_pages"])


# ---------------------------------------------------------------------------------------- steps one after another


def test_addresses_that_a_recording_of_decodes_reads_stay_the_same() -> None:
    """What XQA and the writing kernel are given for three rows, whatever else is planned between."""
    spec = spec_of()
    backend, _, _ = standin_attention(spec)
    batch, num_pages = make_batch(DECODES, spec.page_size)
    other, _ = make_batch([(7, 1), (100, 1), (2, 1)], spec.page_size, seed=4)
    width = batch.page_table.shape[1]
    other.page_table = other.page_table[:, :width].contiguous() % num_pages
    tensors = make_tensors(spec, batch, num_pages, torch.bfloat16)
    seen = []
    real = backend._decode._attend

    def attend(q: torch.Tensor, kv: object, workspace: torch.Tensor, *rest: object, **more: object) -> None:
        tables, lengths = rest[0], rest[1]
        seen.append([x.data_ptr() for x in (workspace, tables, lengths, backend._places)])
        real(q, kv, workspace, *rest, **more)

    backend._decode._attend = attend
    prompt, more_pages = make_batch([(0, 30)], spec.page_size)  # more tokens than there are slots
    table = torch.zeros_like(batch.page_table)
    table[: len(prompt.page_table), : prompt.page_table.shape[1]] = prompt.page_table
    prompt.page_table = table
    for each in (batch, replace_starts(other, [7, 30, 2])):
        run(backend, each, tensors)
        run(backend, prompt, make_tensors(spec, prompt, more_pages, torch.bfloat16))
    run(backend, batch, tensors)
    assert seen[0] == seen[1] == seen[2]


def test_a_trial_step_may_have_more_rows_than_there_are_slots() -> None:
    """As before there are KV pages: every row is slot 0, on one page."""
    spec = spec_of()
    batch, _ = make_batch([(0, 1)] * 6, spec.page_size)
    batch.page_table = torch.zeros((1, 3), dtype=torch.int32)
    batch.slots.zero_()
    batch.host.slots[:] = 0
    backend, flashinfer, _ = standin_attention(spec)
    tensors = make_tensors(spec, batch, 1, torch.bfloat16)
    assert run(backend, batch, tensors).shape == (6, 4, 64)
    assert flashinfer.calls == ["xqa"]


def replace_starts(batch, starts):
    """The same rows with other contexts."""
    array = np.array(starts, np.int32)
    return replace(
        batch,
        starts=torch.from_numpy(array),
        positions=torch.from_numpy(array.copy()),
        max_context=int(array.max()) + 1,
        host=replace(batch.host, starts=array),
    )


def test_steps_in_flight_never_overwrite_a_plan_that_is_not_copied_yet() -> None:
    """The device does nothing until somebody waits for it; the stand-in refuses a plan over one that it has not read."""
    spec = spec_of()
    backend, _, device = standin_attention(spec)
    batch, num_pages = make_batch(MIXED, spec.page_size)
    tensors = make_tensors(spec, batch, num_pages, torch.bfloat16)
    waited = []
    advance = device.advance
    device.advance = lambda to: (waited.append(to > device._done), advance(to))
    for _ in range(5):
        run(backend, batch, tensors)
    assert waited == [False, False, True, True, True]


def test_padding_rows_on_a_scratch_page_change_nothing_for_the_others(library: Library) -> None:
    spec = spec_of()
    rows = [*DECODES, (0, 1), (0, 1)]
    batch, num_pages = make_batch(rows, spec.page_size)
    padding = int(batch.slots[3])
    batch.slots[4] = padding
    batch.host.slots[4] = padding
    tensors = make_tensors(spec, batch, num_pages, torch.bfloat16)
    scratch = int(batch.page_table[padding, 0])
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    backend, _, _ = standin_attention(spec)
    out = run(backend, batch, tensors)
    oracle = run(TorchAttention(spec), batch, expected)
    torch.testing.assert_close(out[:3], oracle[:3], atol=3e-2, rtol=3e-2)
    others = torch.arange(num_pages) != scratch
    assert torch.equal(tensors["k_pages"][others], expected["k_pages"][others])


# ------------------------------------------------------------------------------------ the stand-in finds the traps


def prefill_call(**changes: object) -> dict[str, object]:
    def ints(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    return {
        "qo_indptr": ints(0, 3),
        "paged_kv_indptr": ints(0, 2),
        "paged_kv_indices": ints(4, 1),
        "paged_kv_last_page_len": ints(2),
        "num_qo_heads": 4,
        "num_kv_heads": 2,
        "head_dim_qk": 64,
        "page_size": 16,
        "causal": True,
        "sm_scale": 0.125,
        "q_data_type": torch.bfloat16,
        "kv_data_type": torch.bfloat16,
        "o_data_type": torch.bfloat16,
        "seq_lens": ints(18),
        **changes,
    }


def wrapper(device: FakeDevice | None = None):
    flashinfer = fake_flashinfer(device)
    return flashinfer.BatchPrefillWithPagedKVCacheWrapper(torch.zeros(1), "NHD", backend="fa2")


@pytest.mark.parametrize(
    "changes",
    [
        {"causal": False},
        {"q_data_type": "float16"},
        {"kv_data_type": None},
        {"paged_kv_last_page_len": torch.tensor([0], dtype=torch.int32)},
        {"seq_lens": torch.tensor([17], dtype=torch.int32)},
        {"qo_indptr": torch.tensor([0, 30], dtype=torch.int32)},
        {"paged_kv_indices": torch.tensor([4], dtype=torch.int32)},
        {"paged_kv_indices": torch.tensor([4, 1])},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_stand_in_refuses_plans_that_the_library_would_take_wrongly(changes: dict[str, object]) -> None:
    wrapper().plan(**prefill_call())
    with pytest.raises(Trap):
        wrapper().plan(**prefill_call(**changes))


def test_the_stand_in_refuses_runs_that_the_library_would_take_wrongly() -> None:
    planned = wrapper()
    planned.plan(**prefill_call())
    q = torch.zeros(3, 4, 64, dtype=torch.bfloat16)
    pages = torch.zeros(5, 2, 16, 2, 64, dtype=torch.bfloat16)
    good = (pages[:, 0], pages[:, 1])
    planned.run(q, good, out=torch.empty_like(q))
    strided = torch.zeros(5, 16, 2, 64, dtype=torch.bfloat16)
    for queries, cache in (
        (q[:2], good),
        (q, (pages[:, 0], strided)),
        (q, (pages[:4, 0], pages[:4, 1])),
        (q.half(), good),
        (q, tuple(x.to(E4M3) for x in good)),
    ):
        with pytest.raises(Trap):
            planned.run(queries, cache, out=torch.empty_like(queries))
    with pytest.raises(TypeError, match="sm_scale"):
        planned.run(q, good, out=torch.empty_like(q), sm_scale=1.0)
    with pytest.raises(Trap, match="overwritten"):
        planned.plan(**prefill_call())
