"""DoRA: both passes against float64, never worse than plain torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lora_contract.errors import RegistryError
from lora_kernels.ops import LowRank, merge_dora
from lora_kernels.ops.merge_dora import in_torch as reference
from lora_kernels.ops.testing import Guarded, assert_close
from tests.kernels.ops.inputs import BF16, FP16, FP32, laid_out, lora, normal

KINDS = [(BF16, BF16, BF16), (FP32, FP32, FP32), (FP16, FP16, FP32), (FP32, BF16, BF16)]


def inputs(shape, dtype, factor_dtype, device, *, rank=5):
    w = normal(shape, seed=1, dtype=dtype).to(device)
    adapter = lora(shape, rank, seed=0, dtype=factor_dtype, device=device)
    return w, adapter, normal((shape[0],), seed=2, dtype=factor_dtype).to(device)


def exact(w, adapter, magnitude):
    out = torch.empty(w.shape, dtype=torch.float64, device=w.device)
    reference.merge(w, adapter, magnitude, out, compute=torch.float64)
    return out


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (65, 200), (128, 64), (3, 513)], ids=str)
@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_close_to_float64_as_torch_is(shape, kinds, device):
    w_dtype, out_dtype, factor_dtype = kinds
    given = inputs(shape, w_dtype, factor_dtype, device)
    guarded = Guarded(shape, out_dtype, device, padding=3)
    assert merge_dora(*given, out=guarded.tensor, backend="triton") is guarded.tensor
    guarded.check()
    as_torch = merge_dora(*given, dtype=out_dtype, backend="torch")
    # Products along the rank are summed in another order: a factor of two on torch's largest error.
    assert_close(guarded.tensor, exact(*given), as_torch=as_torch, factor=2.0)


@pytest.mark.parametrize("layout", ["transposed", "padded", "odd", "stepped"])
def test_any_layout_gives_the_same_bytes(layout, device):
    w, adapter, magnitude = inputs((72, 136), BF16, BF16, device)
    expected = merge_dora(w, adapter, magnitude, backend="triton")
    strided = LowRank(laid_out(adapter.b, "transposed"), laid_out(adapter.a, "odd"), adapter.scale)
    got = merge_dora(laid_out(w, layout), strided, magnitude, out=w, backend="triton")
    assert torch.equal(got, expected)
    assert got is w


def test_rows_get_the_norm_that_was_trained(device):
    w, adapter, magnitude = inputs((40, 300), FP32, FP32, device)
    got = merge_dora(w, adapter, magnitude, backend="triton").double()
    # The norm's own roundings, and one per element, which average out: far below 2^-20.
    torch.testing.assert_close(got.norm(dim=1), magnitude.double().abs(), rtol=2.0**-20, atol=0)


def test_a_row_without_direction_is_nan_and_no_other(device):
    w, adapter, magnitude = inputs((70, 70), BF16, BF16, device)
    w[3], adapter.b[3] = 0, 0
    w[66, 69] = torch.inf
    got = merge_dora(w, adapter, magnitude, backend="triton")
    assert got[3].isnan().all()
    assert got[66, 69].isnan()
    rest = [row for row in range(70) if row not in (3, 66)]
    assert got[rest].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)], ids=str)
def test_empty(shape, device):
    assert merge_dora(*inputs(shape, BF16, BF16, device), backend="triton").shape == shape


def test_rank_zero_only_scales(device):
    w, adapter, magnitude = inputs((9, 20), FP32, FP32, device, rank=0)
    got = merge_dora(w, adapter, magnitude, backend="triton")
    torch.testing.assert_close(got, magnitude[:, None] / w.norm(dim=1, keepdim=True) * w)


def test_a_magnitude_of_another_length_is_refused():
    device = torch.device("cpu")
    w, adapter, magnitude = inputs((4, 6), FP32, FP32, device)
    with pytest.raises(RegistryError, match=r"magnitude of W is \(3,\) on cpu; expected \(4,\)"):
        merge_dora(w, adapter, magnitude[:3])
    with pytest.raises(RegistryError, match="magnitude of W has the dtype"):
        merge_dora(w, adapter, torch.arange(4))


@pytest.mark.parametrize(("dtype", "rank"), [(BF16, 5), (FP16, 100)], ids=str)
def test_chunks_of_rows_and_segments_of_columns(dtype, rank, device):
    """More rows than a chunk has, more columns than a segment, the last of both not full, into a padded output."""
    from lora_kernels.ops.configs import DORA_ROWS
    from lora_kernels.ops.merge_dora import aligned
    from lora_kernels.ops.single import single

    shape = (35, 136)
    w, adapter, magnitude = inputs(shape, dtype, dtype, device, rank=rank)
    whole, cut = (Guarded(shape, dtype, device, padding=8) for _ in range(2))
    for guarded, chunk in ((whole, aligned.CHUNK_BYTES), (cut, 32 * 2 * shape[1])):
        given = single(w, guarded.tensor, [adapter], most=1, unroll=aligned.UNROLL, transpose=False)
        aligned.merge(given, magnitude, config=replace(DORA_ROWS, columns=64), chunk_bytes=chunk)
        guarded.check()
    assert torch.equal(whole.tensor, cut.tensor)
    as_torch = merge_dora(w, adapter, magnitude, backend="torch")
    assert_close(whole.tensor, exact(w, adapter, magnitude), as_torch=as_torch, factor=2.0)
