"""The operations of every back end against the torch ones: same shapes, same numbers, in place where they say so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_targets import TARGETS, make_ops
from penstock.kernels.cpu.library import Library
from penstock.kernels.cpu.ops import CpuOps
from penstock.kernels.interface import Ops
from penstock.kernels.reference import TorchOps

REFERENCE = TorchOps()
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
# One rounding of bfloat16 is 2^-9 relative; two may meet.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(params=TARGETS)
def ops(request: pytest.FixtureRequest, library: Library) -> Ops:
    return make_ops(request.param, library)


@pytest.fixture
def cpu(library: Library) -> CpuOps:
    return CpuOps(library)


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@DTYPES
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 12, 13, 16, 64, 300])
@pytest.mark.parametrize(
    ("out_features", "in_features"), [(96, 64), (31, 33), (1, 2), (200, 257), (512, 256)]
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_matches_torch(
    ops: Ops, tokens: int, out_features: int, in_features: int, with_bias: bool, dtype: torch.dtype
) -> None:
    weight = randn(out_features, in_features, dtype=dtype) / in_features**0.5
    bias = randn(out_features, dtype=dtype, seed=1) if with_bias else None
    x = randn(tokens, in_features, dtype=dtype, seed=2)
    out = ops.linear(weight, bias)(x)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert out.dtype == dtype
    close(out, expected.to(dtype))


@DTYPES
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 12, 13, 64, 300])
@pytest.mark.parametrize(("out_features", "in_features"), [(96, 64), (31, 33), (1, 2), (257, 200), (64, 256)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gated_linear_matches_the_product_of_its_halves(
    ops: Ops, tokens: int, out_features: int, in_features: int, with_bias: bool, dtype: torch.dtype
) -> None:
    weight = randn(2 * out_features, in_features, dtype=dtype) / in_features**0.5
    bias = randn(2 * out_features, dtype=dtype, seed=1) if with_bias else None
    x = randn(tokens, in_features, dtype=dtype, seed=2)
    gate, up = (x.double() @ weight.double().T + (0 if bias is None else bias.double())).chunk(2, dim=-1)
    expected = (gate * torch.sigmoid(gate) * up).to(dtype)
    close(ops.gated_linear(weight, bias)(x), expected)
    close(REFERENCE.gated_linear(weight, bias)(x), expected)


@DTYPES
def test_gated_linear_gives_a_row_the_same_bits_in_every_batch(cpu: CpuOps, dtype: torch.dtype) -> None:
    gated = cpu.gated_linear(randn(1000, 256, dtype=dtype) / 16)
    x = randn(200, 256, dtype=dtype, seed=1)
    whole = gated(x)
    for count in (*range(1, 30), 100):
        assert torch.equal(gated(x[50 : 50 + count]), whole[50 : 50 + count]), f"batch of {count}"


@DTYPES
@pytest.mark.parametrize("in_features", [256, 255])
def test_linear_gives_a_row_the_same_bits_in_every_batch(
    cpu: CpuOps, in_features: int, dtype: torch.dtype
) -> None:
    linear = cpu.linear(randn(1000, in_features, dtype=dtype))
    x = randn(200, in_features, dtype=dtype, seed=1)
    whole = linear(x)
    for count in (*range(1, 30), 100):
        assert torch.equal(linear(x[50 : 50 + count]), whole[50 : 50 + count]), f"batch of {count}"


@DTYPES
def test_linear_takes_strided_rows(ops: Ops, dtype: torch.dtype) -> None:
    linear, wide = ops.linear(randn(64, 32, dtype=dtype)), randn(7, 100, dtype=dtype)
    assert torch.equal(linear(wide[:, 10:42]), linear(wide[:, 10:42].contiguous()))
    assert torch.equal(linear(wide[:, 0:64:2]), linear(wide[:, 0:64:2].contiguous()))
    assert linear(wide[:0, :32]).shape == (0, 64)


@DTYPES
def test_linear_returns_the_rows_of_its_weight(ops: Ops, dtype: torch.dtype) -> None:
    weight = randn(100, 33, dtype=dtype)
    ids = torch.tensor([99, 0, 31, 32, 33, 0])
    assert torch.equal(ops.linear(weight.clone()).rows(ids), weight[ids])


@DTYPES
@pytest.mark.parametrize("shape", [(1, 256), (3, 7), (40, 1000), (5, 4, 64), (300, 1024)])
def test_norms_match_torch(ops: Ops, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype, seed=1)
    weight = randn(shape[-1], dtype=dtype, seed=2)
    close(ops.rms_norm(x, weight, 1e-6), REFERENCE.rms_norm(x, weight, 1e-6))
    expected, expected_sum = REFERENCE.add_rms_norm(x, residual.clone(), weight, 1e-5)
    normed, total = ops.add_rms_norm(x, residual, weight, 1e-5)
    close(normed, expected)
    assert torch.equal(total, expected_sum)
    assert total.data_ptr() == residual.data_ptr()


@DTYPES
@pytest.mark.parametrize("shape", [(1, 64), (3, 14), (300, 1024)])
def test_silu_mul_matches_torch(ops: Ops, shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate_up = randn(*shape, dtype=dtype) * 10
    gate_up[0, 0] = -200.0  # far out, where a careless exponential overflows
    close(ops.silu_mul(gate_up), REFERENCE.silu_mul(gate_up))


@DTYPES
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(128, 128), (64, 64), (80, 32), (12, 4)])
@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("tokens", [1, 50])
def test_rotary_matches_torch_in_place_on_strided_heads(
    ops: Ops, head_dim: int, rotary_dim: int, with_norms: bool, tokens: int, dtype: torch.dtype
) -> None:
    fused = randn(tokens, 8, head_dim, dtype=dtype)
    expected_fused = fused.clone()
    angles = randn(100, rotary_dim // 2, dtype=torch.float32, seed=1)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    positions = torch.randint(0, 100, (tokens,), dtype=torch.int32)
    norms = [randn(head_dim, dtype=dtype, seed=s) for s in (2, 3)] if with_norms else [None, None]
    for which, tensor in ((ops, fused), (REFERENCE, expected_fused)):
        q, k = tensor[:, :4], tensor[:, 4:6]
        rotated_q, rotated_k = which.rotary(q, k, cos_sin, positions, *norms)
        assert rotated_q.data_ptr() == q.data_ptr()
        assert rotated_k.data_ptr() == k.data_ptr()
    close(fused, expected_fused)


def test_dtypes_the_kernels_lack_go_through_torch(ops: Ops) -> None:
    x, weight = randn(3, 64, dtype=torch.float16), randn(64, dtype=torch.float16)
    assert torch.equal(ops.rms_norm(x, weight, 1e-6), REFERENCE.rms_norm(x, weight, 1e-6))
    assert torch.equal(ops.silu_mul(x), REFERENCE.silu_mul(x))
    square = randn(64, 64, dtype=torch.float16)
    assert torch.equal(ops.linear(square)(x), REFERENCE.linear(square)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("vocab", [1, 31, 32, 320, 5_003])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_masks_forbid_what_their_bits_say_in_their_rows_alone(
    ops: Ops, vocab: int, count: int, dtype: torch.dtype
) -> None:
    random = np.random.default_rng(vocab)
    allowed = random.random((count, vocab)) < random.random((count, 1))
    allowed[0] = True
    allowed[-1, 0] = False
    padded = np.zeros((count, -(-vocab // 32) * 32), np.bool_)
    padded[:, :vocab] = allowed
    bits = torch.from_numpy(np.packbits(padded, axis=1, bitorder="little").view(np.int32))
    rows = torch.from_numpy(random.permutation(50)[:count].astype(np.int32))
    logits = randn(50, vocab, dtype=dtype)
    expected = logits.clone()
    for row, tokens in zip(rows.tolist(), allowed, strict=True):
        expected[row, torch.from_numpy(~tokens)] = float("-inf")
    for which in (ops, REFERENCE):
        masked = logits.clone()
        which.mask_logits(masked, bits, rows)
        assert torch.equal(masked, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32], ids=["f32", "bf16", "i32"])
@pytest.mark.parametrize("rows", [0, 1, 7, 900])
def test_rows_are_copied_and_joined_whatever_they_are_part_of(
    ops: CpuOps, rows: int, dtype: torch.dtype
) -> None:
    long = (100 * randn(rows, 50, dtype=torch.float32)).to(dtype)
    parts = [long[:, :13], long[:, 20:21], long[:, 30:].contiguous()]
    assert torch.equal(ops.join(parts), REFERENCE.join(parts))
    for which in (ops, REFERENCE):
        target = torch.full((rows, 40), 7, dtype=dtype)
        which.copy_rows(long[:, 5:15], target[:, 20:30])
        assert torch.equal(target[:, 20:30], long[:, 5:15])
        assert (target[:, :20] == 7).all()
        assert (target[:, 30:] == 7).all()
