"""Merges into quantized weights: the bits of dequantizing first, and against float64 never worse than plain torch."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from lora_contract.errors import RegistryError
from lora_kernels.ops import LowRank, merge_low_rank, merge_quantized
from lora_kernels.ops.merge_quantized import in_torch as reference
from lora_kernels.ops.testing import Guarded, assert_close
from tests.kernels.ops.inputs import BF16, FP16, FP32, laid_out, loras
from tests.kernels.ops.quantized_inputs import decoded, four_bit, int8_rows

WEIGHTS = {
    "nf4": four_bit,
    "nf4 plain, large blocks": lambda shape, device: four_bit(shape, device, nested=False, blocksize=512),
    "fp4": lambda shape, device: four_bit(shape, device, kind="fp4"),
    "int8": int8_rows,
}
# Only rows of whole steps of 64 columns go to the kernel on bands.
SHAPES = [(1, 1), (7, 13), (63, 65), (130, 96), (3, 513), (18, 128)]


@pytest.fixture(params=WEIGHTS)
def make(request):
    return WEIGHTS[request.param]


@pytest.mark.parametrize("kinds", [(BF16, BF16), (FP16, FP32), (FP32, FP32)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_close_to_float64_as_torch_is(shape, kinds, make, device):
    out_dtype, factor_dtype = kinds
    weight, adapters = make(shape, device), loras(shape, (16, 3), dtype=factor_dtype, device=device)
    guarded = Guarded(shape, out_dtype, device, padding=5 if shape[1] % 8 else 8)
    assert merge_quantized(weight, adapters, out=guarded.tensor, backend="triton").weight is guarded.tensor
    guarded.check()
    exact = torch.empty(shape, dtype=torch.float64, device=device)
    reference.merge(weight, adapters, exact, stats=False, compute=torch.float64)
    as_torch = merge_quantized(weight, adapters, dtype=out_dtype, backend="torch").weight
    # The order of summation along the rank differs from torch's: a factor of two on its largest error.
    assert_close(guarded.tensor, exact, as_torch=as_torch, factor=2.0)


@pytest.mark.parametrize("shape", [(7, 13), (70, 96)], ids=str)
def test_the_bits_and_statistics_of_dequantizing_first(shape, make, device):
    weight = make(shape, device)
    kind = "fp4" if make is WEIGHTS["fp4"] else "nf4"
    # So small an update that much of it is lost in the rounding.
    adapters = [LowRank(one.b, one.a, one.scale * 2.0**-9) for one in loras(shape, (8, 5), device=device)]
    got = merge_quantized(weight, adapters, stats=True, backend="triton")
    expected = merge_low_rank(decoded(weight, kind=kind).to(device), adapters, dtype=BF16, stats=True, backend="triton")
    assert torch.equal(got.weight, expected.weight)
    assert got.stats == expected.stats
    plain = merge_quantized(weight, adapters, backend="triton")
    assert plain.stats is None
    assert torch.equal(plain.weight, got.weight)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((40, 96), "transposed"), ((40, 96), "padded"), ((40, 96), "stepped"), ((18, 128), "padded")],
    ids=str,
)
def test_any_layout_of_the_output_and_the_factors(layout, shape, make, device):
    weight, adapters = make(shape, device), loras(shape, (8,), device=device)
    strided = [LowRank(laid_out(one.b, "transposed"), laid_out(one.a, "odd"), one.scale) for one in adapters]
    out = laid_out(torch.zeros(shape, dtype=BF16, device=device), layout)
    got = merge_quantized(weight, strided, out=out, backend="triton").weight
    assert torch.equal(got, merge_quantized(weight, adapters, backend="triton").weight)


@pytest.mark.parametrize(("shape", "dtype"), [((40, 96), FP32), ((18, 64), FP16)])
def test_no_adapter_is_the_dequantized_weight(shape, dtype, make, device):
    weight = make(shape, device)
    nothing = LowRank(torch.zeros(shape[0], 0, device=device), torch.zeros(0, shape[1], device=device))
    for adapters in ([], [nothing]):
        got = merge_quantized(weight, adapters, dtype=dtype, backend="triton").weight
        # What is added is +0, which turns -0 into +0.
        kind = "fp4" if make is WEIGHTS["fp4"] else "nf4"
        assert torch.equal(got.cpu(), (decoded(weight, kind=kind) + 0).to(dtype))


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_statistics_are_those_of_torch_on_bands_too(dtype, make, device):
    shape = (18, 64)
    weight = make(shape, device)
    adapters = [LowRank(one.b, one.a, one.scale * 2.0**-6) for one in loras(shape, (8, 40), device=device)]
    got = merge_quantized(weight, adapters, dtype=dtype, stats=True, backend="triton")
    exact = merge_quantized(weight, adapters, dtype=dtype, stats=True, backend="torch")
    assert torch.equal(got.weight, merge_quantized(weight, adapters, dtype=dtype, backend="triton").weight)
    assert got.stats is not None
    assert exact.stats is not None
    assert asdict(got.stats.sums) == pytest.approx(asdict(exact.stats.sums), rel=1e-4)
    assert got.stats.max_delta == pytest.approx(exact.stats.max_delta, rel=1e-6)
    assert got.stats.non_finite == 0


@pytest.mark.parametrize("shape", [(70, 96), (18, 128)], ids=str)
def test_what_is_not_finite_is_counted(shape, make, device):
    weight, (adapter,) = make(shape, device), loras(shape, (8,), device=device)
    adapter.a[2, 69] = torch.nan
    merged, stats = merge_quantized(weight, [adapter], stats=True, backend="triton")
    lost = ~merged.isfinite().cpu()
    assert lost[:, 69].all()
    assert stats is not None
    assert stats.non_finite == int(lost.sum()) == shape[0]
    assert stats.max_delta == torch.inf


def test_a_row_of_several_programs(device):
    """A program takes at least four steps of 64 columns, here of a band of one row."""
    shape = (1, 320)
    weight, adapters = four_bit(shape, device), loras(shape, (40,), device=device)
    got = merge_quantized(weight, adapters, stats=True, backend="triton")
    expected = merge_quantized(weight, adapters, stats=True, backend="torch")
    assert_close(got.weight, expected.weight.double(), as_torch=expected.weight, tiny=2.0**-8)
    assert got.stats is not None
    assert expected.stats is not None
    assert asdict(got.stats.sums) == pytest.approx(asdict(expected.stats.sums), rel=1e-4)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)], ids=str)
def test_empty(shape, make, device):
    merged, stats = merge_quantized(
        make(shape, device), loras(shape, (2,), device=device), stats=True, backend="triton"
    )
    assert merged.shape == shape
    assert stats is not None
    assert stats.non_finite == 0


def test_on_a_cpu_torch_merges():
    device = torch.device("cpu")
    weight, adapters = four_bit((6, 5), device), loras((6, 5), (2,), device=device)
    expected = merge_low_rank(decoded(weight), adapters, dtype=BF16).weight
    assert torch.equal(merge_quantized(weight, adapters).weight, expected)


def test_factors_that_do_not_fit_are_refused():
    device = torch.device("cpu")
    with pytest.raises(RegistryError, match=r"of adapter 0 do not match W \(6, 5\)"):
        merge_quantized(four_bit((6, 5), device), loras((5, 6), (2,), device=device))
