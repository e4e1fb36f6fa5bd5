"""Merges into quantized weights: the bits of dequantizing first, and against float64 never worse than plain torch."""

from __future__ import annotations

import pytest
import torch

from lora_contract.errors import RegistryError
from lora_kernels.ops import LowRank, merge_low_rank, merge_quantized
from lora_kernels.ops.merge_quantized import in_torch as reference
from lora_kernels.ops.quantized import fragments
from lora_kernels.ops.testing import Guarded, assert_close
from tests.kernels.ops.inputs import BF16, FP16, FP32, laid_out, loras, normal
from tests.kernels.ops.quantized_inputs import decoded, four_bit, int8_rows

WEIGHTS = {
    "nf4": four_bit,
    "nf4 plain, large blocks": lambda shape, device: four_bit(shape, device, nested=False, blocksize=512),
    "fp4": lambda shape, device: four_bit(shape, device, kind="fp4"),
    "int8": int8_rows,
}
# Only rows of whole steps of 64 columns go to the kernel on bands.
SHAPES = [(1, 1), (7, 13), (63, 65), (130, 96), (3, 513), (37, 192)]


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


@pytest.mark.parametrize("shape", [(40, 96), (40, 128)], ids=str)
@pytest.mark.parametrize("layout", ["transposed", "padded", "stepped"])
def test_any_layout_of_the_output_and_the_factors(layout, shape, make, device):
    weight, adapters = make(shape, device), loras(shape, (8,), device=device)
    strided = [LowRank(laid_out(one.b, "transposed"), laid_out(one.a, "odd"), one.scale) for one in adapters]
    out = laid_out(torch.zeros(shape, dtype=BF16, device=device), layout)
    got = merge_quantized(weight, strided, out=out, backend="triton").weight
    assert torch.equal(got, merge_quantized(weight, adapters, backend="triton").weight)


@pytest.mark.parametrize(("columns", "dtype"), [(96, FP32), (128, FP16)])
def test_no_adapter_is_the_dequantized_weight(columns, dtype, make, device):
    weight = make((40, columns), device)
    nothing = LowRank(torch.zeros(40, 0, device=device), torch.zeros(0, columns, device=device))
    for adapters in ([], [nothing]):
        got = merge_quantized(weight, adapters, dtype=dtype, backend="triton").weight
        # What is added is +0, which turns -0 into +0.
        kind = "fp4" if make is WEIGHTS["fp4"] else "nf4"
        assert torch.equal(got.cpu(), (decoded(weight, kind=kind) + 0).to(dtype))


def test_what_is_not_finite_is_counted(make, device):
    weight, (adapter,) = make((70, 96), device), loras((70, 96), (8,), device=device)
    adapter.a[2, 69] = torch.nan
    merged, stats = merge_quantized(weight, [adapter], stats=True, backend="triton")
    lost = ~merged.isfinite().cpu()
    assert lost[:, 69].all()
    assert stats is not None
    assert stats.non_finite == int(lost.sum()) == 70
    assert stats.max_delta == torch.inf


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)], ids=str)
def test_empty(shape, make, device):
    merged, stats = merge_quantized(
        make(shape, device), loras(shape, (2,), device=device), stats=True, backend="triton"
    )
    assert merged.shape == shape
    assert stats is not None
    assert stats.non_finite == 0


def test_planes_hold_float32_factors_exactly():
    factor = normal((64, 64), seed=0)
    factor[0, :4] = torch.tensor([torch.inf, torch.nan, 2.0**-100, -(1 - 2.0**-24)])
    large, middle, small = fragments.planes(factor)
    whole = large.double() + middle.double() + small.double()
    assert torch.equal(whole.nan_to_num(nan=7.0), factor.double().nan_to_num(nan=7.0))


def test_on_a_cpu_torch_merges():
    device = torch.device("cpu")
    weight, adapters = four_bit((6, 5), device), loras((6, 5), (2,), device=device)
    expected = merge_low_rank(decoded(weight), adapters, dtype=BF16).weight
    assert torch.equal(merge_quantized(weight, adapters).weight, expected)


def test_factors_that_do_not_fit_are_refused():
    device = torch.device("cpu")
    with pytest.raises(RegistryError, match=r"of adapter 0 do not match W \(6, 5\)"):
        merge_quantized(four_bit((6, 5), device), loras((5, 6), (2,), device=device))
