"""Dequantizing: the bits of the numpy codecs, and through the twin of bitsandbytes, whatever the shape and layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lora_contract.errors import RegistryError
from lora_kernels.ops import FourBit, Int8Rows, Nested, dequant_blockwise
from lora_kernels.ops.dequant_blockwise import kernel
from lora_kernels.ops.merge_quantized import kernel as merge_kernel
from lora_kernels.ops.quantized import bands_launch
from lora_kernels.ops.quantized import in_torch as reference
from lora_kernels.ops.testing import Guarded, assert_close
from tests.kernels.ops.inputs import BF16, FP16, FP32, bits, laid_out
from tests.kernels.ops.quantized_inputs import LastPrograms, decoded, ending_with, four_bit, int8_rows
from tests.support.bnb import dequantized

SHAPES = [(1, 1), (7, 13), (33, 65), (70, 96), (64, 128), (3, 4096)]
CPU = torch.device("cpu")


def assert_bits(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert (bits(got) == bits(expected.to(got.dtype))).all()


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize(("kind", "blocksize"), [("nf4", 64), ("nf4", 32), ("fp4", 64), ("nf4", 4096)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_four_bit_has_the_bits_of_the_codec(shape, kind, blocksize, nested, device):
    weight = four_bit(shape, device, kind=kind, blocksize=blocksize, nested=nested)
    for dtype in (BF16, FP32):
        guarded = Guarded(shape, dtype, device, padding=5 if shape[1] % 8 else 8)
        assert dequant_blockwise(weight, out=guarded.tensor, backend="triton") is guarded.tensor
        guarded.check()
        assert_bits(guarded.tensor, decoded(weight, kind=kind))


@pytest.mark.parametrize("layout", ["rows", "transposed", "padded", "odd", "stepped"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (70, 96), (18, 128)], ids=str)
def test_int8_has_the_bits_of_the_codec(shape, layout, device):
    weight = int8_rows(shape, device)
    strided = Int8Rows(laid_out(weight.codes, layout), weight.scb)
    for dtype in (BF16, FP16, FP32):
        assert_bits(dequant_blockwise(strided, dtype=dtype, backend="triton"), decoded(weight))


@pytest.mark.parametrize(
    "weight", [four_bit((40, 96), CPU), four_bit((7, 13), CPU), int8_rows((40, 72), CPU)], ids=repr
)
def test_the_twin_is_close_to_float64(weight):
    exact = reference.dequantize(weight, torch.float64)
    # At most three roundings of float32, of numbers no larger than twice the result's scale.
    assert_close(dequant_blockwise(weight, dtype=FP32), exact, as_torch=exact, tiny=6 * 2.0**-24)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_bytes_of_any_address_and_outputs_of_any_layout(dtype, device):
    weight = four_bit((40, 96), device)
    storage = torch.empty(weight.packed.numel() + 1, dtype=torch.uint8, device=device)
    storage[1:] = weight.packed
    shifted = replace(weight, packed=storage[1:])
    column = replace(weight, packed=weight.packed[:, None])
    for given in (weight, shifted, column):
        guarded = Guarded((40, 96), dtype, device, padding=8, transposed=True)
        dequant_blockwise(given, out=guarded.tensor, backend="triton")
        guarded.check()
        assert_bits(guarded.tensor, decoded(weight))


def test_an_absmax_below_zero_and_one_that_is_not_finite(device):
    weight = four_bit((4, 64), device, nested=False)
    weight.absmax[:] = torch.tensor([-0.5, torch.inf, torch.nan, 0.0])
    got = dequant_blockwise(weight, dtype=FP32, backend="triton")
    expected = dequant_blockwise(weight, dtype=FP32, backend="torch")
    assert torch.equal(got.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    assert torch.equal(got[0].signbit(), expected[0].signbit())
    assert got[2].isnan().all()


@pytest.mark.parametrize("kind", ["4-bit", "int8", "4-bit by columns"])
def test_elements_past_31_bits(kind, device, monkeypatch):
    """The end of a matrix of 2^31 + 4,096 elements, of which only its pages are ever touched."""
    rows, first = 2**25 + 64, 2**25
    end = int8_rows((64, 64), device) if kind == "int8" else four_bit((64, 64), device, nested=False)
    weight = ending_with(end, rows)
    if kind == "4-bit by columns":
        out = torch.empty((64, rows), dtype=BF16, device=device).T
        last = LastPrograms(monkeypatch, merge_kernel, "merge_quantized_kernel")
    else:
        out = torch.empty((rows, 64), dtype=BF16, device=device)
        module, name = (bands_launch, "bands_kernel") if kind == "int8" else (kernel, "dequant_blockwise_kernel")
        last = LastPrograms(monkeypatch, module, name)
    tail = out[first - 64 :]
    tail.view(torch.int16).fill_(-1)
    dequant_blockwise(weight, out=out, backend="triton")
    assert last.launched
    assert_bits(out[first:], decoded(end))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)], ids=str)
def test_empty(shape, device):
    for weight in (four_bit(shape, device), int8_rows(shape, device)):
        got = dequant_blockwise(weight, backend="triton")
        assert got.shape == shape
        assert got.dtype == BF16


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_twin_has_the_bits_of_bitsandbytes(kind, nested):
    bnb = pytest.importorskip("bitsandbytes.functional")
    packed, state = bnb.quantize_4bit(
        torch.randn(96, 128, generator=torch.Generator().manual_seed(0)), quant_type=kind, compress_statistics=nested
    )
    double = Nested(state.state2.absmax, state.state2.code, state.offset.reshape(())) if nested else None
    weight = FourBit(packed, state.absmax, state.code, (96, 128), state.blocksize, double)
    for dtype in (BF16, FP16, FP32):
        state.dtype = dtype
        assert_bits(dequant_blockwise(weight, dtype=dtype), dequantized(packed, state))


def test_the_twin_has_the_bits_of_bitsandbytes_for_int8():
    bnb = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(40, 72, generator=torch.Generator().manual_seed(0)).half()
    codes, scb, _ = bnb.int8_vectorwise_quant(weight)
    assert_bits(dequant_blockwise(Int8Rows(codes, scb), dtype=FP32), bnb.int8_vectorwise_dequant(codes, scb))


GOOD, INT8 = four_bit((4, 64), CPU), int8_rows((4, 6), CPU)


@pytest.mark.parametrize(
    ("weight", "sentence"),
    [
        (replace(GOOD, packed=GOOD.packed[:-1]), r"`packed` of W is \(127,\) torch.uint8 .* expected \(128,\)"),
        (replace(GOOD, packed=GOOD.packed.repeat(2)[::2]), "`packed` of W .*not contiguous"),
        (replace(GOOD, absmax=GOOD.absmax.float()), "`absmax` of W is .*float32 on .* expected .*uint8"),
        (replace(GOOD, nested=None), "`absmax` of W is .*uint8 on .* expected .*float32"),
        (replace(GOOD, values=GOOD.values[:8]), r"`values` of W is \(8,\)"),
        (replace(GOOD, blocksize=48), "blocksize of W is 48; expected one of 32, 64"),
        (replace(GOOD, shape=(4, 64, 1)), "expected a matrix"),
        (replace(GOOD, nested=replace(GOOD.nested, blocksize=100)), "blocksize of the absmax of W is 100"),
        (replace(GOOD, nested=replace(GOOD.nested, offset=torch.zeros(1))), r"`nested.offset` of W is \(1,\)"),
        (replace(GOOD, nested=replace(GOOD.nested, values=torch.zeros(16))), r"expected \(256,\)"),
        (Int8Rows(INT8.codes.short(), INT8.scb), "expected an int8 matrix"),
        (Int8Rows(INT8.codes, INT8.scb[:3]), r"`scb` of W is \(3,\)"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_by_name(weight, sentence):
    with pytest.raises(RegistryError, match=sentence) as caught:
        dequant_blockwise(weight)
    assert caught.value.code == "invalid-request"


def test_an_output_that_does_not_fit_is_refused():
    with pytest.raises(RegistryError, match=r"output of W is \(4, 5\)"):
        dequant_blockwise(GOOD, out=torch.empty(4, 5))
    with pytest.raises(RegistryError, match=r"requested as torch\.float64"):
        dequant_blockwise(GOOD, dtype=torch.float64)
