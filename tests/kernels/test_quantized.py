"""Linear layers of 8 and 4 bits: the weights they keep, and products that are those of these weights in any batch."""

from __future__ import annotations

import pytest
import torch
from penstock.kernels.cpu.library import Library
from penstock.kernels.cpu.ops import CpuOps
from penstock.kernels.interface import Linear
from penstock.kernels.quantization import Quantization, Scheme, dequantize, quantize, quantized_bytes
from penstock.kernels.reference import TorchOps

SCHEMES = pytest.mark.parametrize("scheme", ["int8", "int4"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
SHAPES = pytest.mark.parametrize(
    ("out_features", "in_features"), [(96, 64), (31, 33), (1, 2), (200, 257), (40, 384), (65, 1000)]
)
# Activations have 16 bits, results one rounding of their dtype; relative to the largest result.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-3}
BITS: dict[Scheme, int] = {"int8": 8, "int4": 4}


@pytest.fixture
def ops(library: Library, scheme: Scheme) -> CpuOps:
    return CpuOps(library, Quantization(scheme))


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def kept(linear: Linear) -> torch.Tensor:
    """(out, in) float64: the whole weight as it was rounded."""
    return linear.rows(torch.arange(linear.out_features)).double()


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    tolerance = TOLERANCE[dtype] * expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=0)


# ---------------------------------------------------------------------------------------------------------- weights


@SCHEMES
@SHAPES
def test_kernels_keep_the_weights_that_the_reference_keeps(
    ops: CpuOps, scheme: Scheme, out_features: int, in_features: int
) -> None:
    weight = randn(out_features, in_features) * torch.exp(randn(out_features, 1, seed=1))
    expected = dequantize(*quantize(weight, BITS[scheme]), in_features).double()
    got = kept(ops.linear(weight.clone()))
    # Two scales whose errors are equal but for rounding may change places.
    assert (got != expected).double().mean() < 2e-3
    assert error(got, weight) == pytest.approx(error(expected, weight), rel=1e-3)
    in_torch = TorchOps(Quantization(scheme)).linear(weight)
    assert torch.equal(kept(in_torch), expected)


def error(kept: torch.Tensor, weight: torch.Tensor) -> float:
    """Squared error over squared weight."""
    return float((kept - weight.double()).square().sum() / weight.double().square().sum())


def test_eight_bits_round_to_the_nearest_of_127_steps(library: Library) -> None:
    weight = randn(64, 300)
    got = kept(CpuOps(library, Quantization("int8")).linear(weight))
    for first in range(0, 300, 128):
        block = weight[:, first : first + 128].double()
        step = block.abs().amax(1, keepdim=True) / 127 * (1 + 2**-8)  # the scale has 8 bits itself
        assert ((got[:, first : first + 128] - block).abs() <= step / 2 * (1 + 2**-7)).all()


def test_four_bits_of_normal_weights_lose_under_0_8_per_cent_of_their_squares(library: Library) -> None:
    weight = randn(64, 1024)
    got = kept(CpuOps(library, Quantization("int4")).linear(weight))
    assert error(got, weight) < 0.008
    for first in range(0, 1024, 32):
        assert len(got[0, first : first + 32].unique()) <= 16


@SCHEMES
def test_an_outlier_costs_its_neighbours_alone(ops: CpuOps, scheme: Scheme) -> None:
    weight = randn(8, 512)
    weight[3, 200] = 1000.0
    got = kept(ops.linear(weight))
    others = weight.clone()
    others[3, 128:256] = 0
    assert error(got[3, :128], others[3, :128]) < 0.01
    assert error(got[3, 256:], others[3, 256:]) < 0.01
    assert got[3, 200].item() == pytest.approx(1000.0, rel=0.02)


@SCHEMES
def test_zero_and_vanishing_weights_are_zero(ops: CpuOps, scheme: Scheme) -> None:
    weight = torch.zeros(3, 256)
    weight[1] = 1e-38
    weight[2, 140] = 0.5
    linear = ops.linear(weight)
    assert kept(linear)[:2].abs().max() < 1e-36
    assert kept(linear)[2].nonzero().flatten().tolist() == [140]
    assert linear(torch.ones(1, 256))[0, 0] == 0


@SCHEMES
@DTYPES
def test_rows_come_back_as_they_were_rounded(
    ops: CpuOps, library: Library, scheme: Scheme, dtype: torch.dtype
) -> None:
    weight = randn(100, 165, dtype=dtype)
    linear = ops.linear(weight.clone())
    ids = torch.tensor([99, 0, 31, 32, 33, 0])
    exact = CpuOps(library, Quantization(scheme)).linear(weight.float())
    assert linear.rows(ids).dtype == dtype
    assert torch.equal(linear.rows(ids), exact.rows(ids).to(dtype))
    assert linear.rows(ids[:0]).shape == (0, 165)


@pytest.mark.parametrize("bits", [8, 4])
def test_bytes_are_those_that_the_kernels_take(library: Library, bits: int) -> None:
    for shape in ((64, 1024), (128, 32), (32, 160)):
        assert library.quick["quantized_bytes"](bits, *shape, 0) == quantized_bytes(shape, bits)


def test_an_output_head_keeps_eight_bits(library: Library) -> None:
    weight = randn(64, 256)
    eight = CpuOps(library, Quantization("int8")).linear(weight)
    for ops in (CpuOps(library, Quantization("int4")), TorchOps(Quantization("int4"))):
        assert torch.equal(kept(ops.linear(weight, is_head=True)), kept(eight))


# --------------------------------------------------------------------------------------------------------- products


@SCHEMES
@DTYPES
@SHAPES
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 12, 13, 16, 64, 300])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_are_those_of_the_kept_weights(
    ops: CpuOps,
    scheme: Scheme,
    tokens: int,
    out_features: int,
    in_features: int,
    with_bias: bool,
    dtype: torch.dtype,
) -> None:
    weight = randn(out_features, in_features, dtype=dtype) / in_features**0.5
    bias = randn(out_features, dtype=dtype, seed=1) if with_bias else None
    x = randn(tokens, in_features, dtype=dtype, seed=2)
    # Rows of a float32 layer are exact; quantising the same numbers in bfloat16 keeps the same.
    whole = kept(ops.linear(weight.float()))
    expected = x.double() @ whole.T + (0 if bias is None else bias.double())
    close(ops.linear(weight, bias)(x), expected, dtype)


@SCHEMES
@DTYPES
@pytest.mark.parametrize("tokens", [1, 3, 12, 13, 64, 200])
@pytest.mark.parametrize(("out_features", "in_features"), [(96, 64), (31, 33), (1, 2), (257, 200)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gated_products_are_those_of_their_halves(
    ops: CpuOps,
    scheme: Scheme,
    tokens: int,
    out_features: int,
    in_features: int,
    with_bias: bool,
    dtype: torch.dtype,
) -> None:
    weight = randn(2 * out_features, in_features, dtype=dtype) / in_features**0.5
    bias = randn(2 * out_features, dtype=dtype, seed=1) if with_bias else None
    x = randn(tokens, in_features, dtype=dtype, seed=2)
    whole = kept(ops.linear(weight.float()))
    gate, up = (x.double() @ whole.T + (0 if bias is None else bias.double())).chunk(2, dim=-1)
    expected = gate * torch.sigmoid(gate) * up
    close(ops.gated_linear(weight, bias)(x), expected, dtype)
    in_torch = TorchOps(Quantization(scheme)).gated_linear(
        weight.float(), None if bias is None else bias.float()
    )
    close(in_torch(x.float()).to(dtype), expected, dtype)


@SCHEMES
@DTYPES
@pytest.mark.parametrize("in_features", [256, 255, 160])
def test_a_row_has_the_same_bits_in_every_batch(
    ops: CpuOps, scheme: Scheme, in_features: int, dtype: torch.dtype
) -> None:
    weight = randn(1000, in_features, dtype=dtype)
    x = randn(200, in_features, dtype=dtype, seed=1)
    for product in (ops.linear(weight), ops.gated_linear(weight)):
        whole = product(x)
        for count in (*range(1, 30), 60, 61, 72, 73, 100):
            assert torch.equal(product(x[50 : 50 + count]), whole[50 : 50 + count]), f"batch of {count}"


@SCHEMES
@DTYPES
def test_strided_rows_and_no_rows(ops: CpuOps, scheme: Scheme, dtype: torch.dtype) -> None:
    linear, wide = ops.linear(randn(64, 32, dtype=dtype)), randn(7, 100, dtype=dtype)
    assert torch.equal(linear(wide[:, 10:42]), linear(wide[:, 10:42].contiguous()))
    assert torch.equal(linear(wide[:, 0:64:2]), linear(wide[:, 0:64:2].contiguous()))
    assert linear(wide[:0, :32]).shape == (0, 64)


@SCHEMES
@pytest.mark.parametrize("tokens", [1, 100])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_sums_do_not_overflow(ops: CpuOps, scheme: Scheme, tokens: int, sign: float) -> None:
    """All weights at the end of their range, all activations at theirs: every product adds to the same side."""
    linear = ops.linear(torch.full((40, 256), -3.0))
    weight = kept(linear)[0, 0].item()
    y = linear(torch.full((tokens, 256), sign * 5.0))
    assert weight == pytest.approx(-3.0, rel=0.01)
    torch.testing.assert_close(y, torch.full_like(y, sign * 5.0 * weight * 256), rtol=1e-5, atol=0)


@SCHEMES
def test_activations_of_all_sizes_keep_their_weight(ops: CpuOps, scheme: Scheme) -> None:
    """A row's own block decides how it is rounded: not other rows, nor a huge activation elsewhere in the row."""
    linear = ops.linear(randn(64, 512))
    x = randn(6, 512, seed=1)
    scaled = x * torch.tensor([1.0, 1e-20, 1e20, 0.0, 1e-33, 1.0])[:, None]
    scaled[5, 300] = 1e4
    y = linear(scaled)
    expected = scaled.double() @ kept(linear).T
    for row in (0, 1, 2, 3, 5):
        torch.testing.assert_close(
            y[row].double(), expected[row], atol=1e-4 * float(expected[row].abs().max()), rtol=0
        )
    assert y[4].abs().max() < 1e-28


@SCHEMES
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none_in_its_row_alone(ops: CpuOps, scheme: Scheme, bad: float) -> None:
    linear = ops.linear(randn(64, 256))
    x = randn(20, 256, seed=1)
    clean = linear(x)
    x[7, 33] = bad
    y = linear(x)
    assert not y[7].isfinite().any()
    others = [row for row in range(20) if row != 7]
    assert torch.equal(y[others], clean[others])
