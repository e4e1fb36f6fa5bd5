"""Merging and quantizing: the bits of the numpy codecs, through the twin those of bitsandbytes.

Factors of small whole numbers make the merge exact, so that codes are compared bit for bit; others are judged against
the merge in float64.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lora_contract.errors import RegistryError
from lora_kernels.ops import dequant_blockwise, empty_nf4, merge_low_rank, requantize_nf4
from lora_kernels.ops.quantized import bands_launch
from lora_kernels.ops.requantize_nf4 import in_torch as reference
from lora_kernels.ops.testing import assert_close
from lora_kernels.quantized.codes import NF4_BOUNDS
from tests.kernels.ops.inputs import BF16, FP16, FP32, laid_out, loras, normal, whole
from tests.kernels.ops.quantized_inputs import (
    GuardedNf4,
    LastPrograms,
    assert_same,
    decoded,
    encoded,
    ending_with,
    four_bit,
    int8_rows,
    written,
)

# Whole blocks in a row, blocks that straddle rows, a short last block, an odd number of elements.
SHAPES = [(1, 1), (7, 13), (33, 65), (33, 96), (70, 192), (1, 4097)]
SIZES = [32, 64, 128, 4096]
CPU = torch.device("cpu")


def weights(shape: tuple[int, int], dtype: torch.dtype = FP32) -> torch.Tensor:
    """Some blocks of zeros, and numbers on the bounds between codes, in a block whose largest is 1."""
    values = normal(shape, seed=3, scale=0.25)
    flat = values.reshape(-1)
    flat[128:192] = 0
    if flat.numel() > 64:
        flat[:64] = 0
        flat[:15], flat[15] = torch.from_numpy(NF4_BOUNDS), 1
    return values.to(dtype)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("blocksize", SIZES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_of_the_codecs(shape, blocksize, nested, device):
    w = weights(shape)
    expected = encoded(w, blocksize, nested=nested)
    for poison in (0xFF, 0x00):
        guarded = GuardedNf4(shape, device, blocksize=blocksize, nested=nested, poison=poison)
        assert requantize_nf4(w.to(device), out=guarded.weight, backend="triton") is guarded.weight
        guarded.check()
        assert_same(guarded.weight, expected)


@pytest.mark.parametrize("blocksize", [64, 128])
@pytest.mark.parametrize("shape", [(7, 13), (40, 192)], ids=str)
@pytest.mark.parametrize("source", ["bf16", "fp16", "nf4", "fp4 plain", "int8"])
def test_merged_and_quantized_in_one(source, shape, blocksize, device):
    weight = {
        "bf16": lambda: weights(shape, BF16).to(device),
        "fp16": lambda: weights(shape, FP16).to(device),
        "nf4": lambda: four_bit(shape, device),
        "fp4 plain": lambda: four_bit(shape, device, kind="fp4", nested=False, blocksize=32),
        "int8": lambda: int8_rows(shape, device),
    }[source]()
    dense = weight.cpu() if isinstance(weight, torch.Tensor) else decoded(weight, kind=source[:3])
    adapters = whole(shape, (3, 8), device=device)
    merged = merge_low_rank(dense.to(device), adapters, dtype=FP32, backend="torch").weight
    got = requantize_nf4(weight, adapters, blocksize=blocksize, backend="triton")
    assert_same(got, encoded(merged, blocksize, nested=True))
    assert_same(requantize_nf4(weight, adapters, blocksize=blocksize, backend="torch"), written(got))


@pytest.mark.parametrize("layout", ["transposed", "padded", "odd", "stepped"])
@pytest.mark.parametrize("shape", [(33, 65), (40, 128)], ids=str)
def test_any_layout_gives_the_same_bytes(shape, layout, device):
    w, adapters = weights(shape, BF16).to(device), whole(shape, (3,), dtype=BF16, device=device)
    expected = requantize_nf4(w, adapters, backend="triton")
    assert_same(requantize_nf4(laid_out(w, layout), adapters, backend="triton"), written(expected))


@pytest.mark.parametrize("shape", [(256, 256), (129, 255)], ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_against_the_merge_in_float64(shape, dtype, device):
    """An element just at a bound may take the neighbouring code: at most one in ten thousand does."""
    w, adapters = normal(shape, seed=1, dtype=dtype).to(device), loras(shape, (16, 3), dtype=dtype, device=device)
    exact, as_torch = (empty_nf4(shape, blocksize=64, nested=False, device=device) for _ in range(2))
    reference.requantize(w, adapters, exact, compute=torch.float64)
    reference.requantize(w, adapters, as_torch)
    got = requantize_nf4(w, adapters, nested=False, backend="triton")
    assert_close(got.absmax, exact.absmax.double(), as_torch=as_torch.absmax, factor=2.0)
    steps = np.abs(codes(got) - codes(exact))
    assert (steps != 0).sum() <= steps.size // 10_000
    assert steps.max() <= 1


def codes(weight) -> np.ndarray:
    packed = weight.packed.cpu().numpy().astype(np.int64)
    return np.stack((packed >> 4, packed & 15), axis=1).reshape(-1)[: weight.elements]


@pytest.mark.parametrize("blocksize", [64, 128])
def test_what_is_on_the_grid_stays(blocksize, device):
    """A block whose largest number is its absmax is read back bit for bit."""
    first = requantize_nf4(weights((40, 128)).to(device), nested=False, blocksize=blocksize, backend="triton")
    second = requantize_nf4(first, nested=False, blocksize=blocksize, backend="triton")
    read = dequant_blockwise(first, dtype=FP32, backend="triton")
    assert torch.equal(read, dequant_blockwise(second, dtype=FP32, backend="triton"))


@pytest.mark.parametrize("blocks", [1, 255, 256, 257, 3000])
def test_double_quantization_of_many_blocks(blocks, device):
    scale = torch.exp(normal((blocks, 1), seed=5))
    w = (normal((blocks, 64), seed=4) * scale).to(device)
    # Blocks of 64 in one row each: the last program's rows are cut. In a layout that is not aligned, so that the blocks
    # themselves are quantized by few programs.
    assert_same(requantize_nf4(laid_out(w, "odd"), backend="triton"), encoded(w, 64, nested=True))


def test_absmax_that_are_all_the_same_leave_only_the_offset(device):
    w = torch.full((300, 64), 0.75, device=device)
    got = requantize_nf4(w, backend="triton")
    assert got.nested is not None
    assert not got.nested.absmax.any()
    assert torch.equal(dequant_blockwise(got, dtype=FP32, backend="triton"), w)


@pytest.mark.parametrize("blocksize", [64, 128])
@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_its_absmax_alone(damage, blocksize, device):
    w = weights((40, 128)).to(device)
    w[3, 70] = damage
    got = requantize_nf4(w, nested=False, blocksize=blocksize, backend="triton")
    block = (3 * 128 + 70) // blocksize
    assert torch.equal(torch.nonzero(~got.absmax.isfinite()).cpu(), torch.tensor([[block]]))


def test_elements_past_31_bits(device, monkeypatch):
    """The end of a matrix of 2^31 + 4,096 elements, of which only its pages are ever touched."""
    end = four_bit((64, 64), device, nested=False)
    weight = ending_with(end, 2**25 + 64)
    last = LastPrograms(monkeypatch, bands_launch, "bands_kernel")
    got = requantize_nf4(weight, nested=False, backend="triton")
    assert last.launched
    expected = requantize_nf4(end, nested=False, backend="torch")
    assert torch.equal(got.packed[-64 * 32 :], expected.packed)
    assert torch.equal(got.absmax[-64:], expected.absmax)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)], ids=str)
def test_empty(shape, nested, device):
    for weight in (torch.zeros(shape, device=device), four_bit(shape, device), int8_rows(shape, device)):
        got = requantize_nf4(weight, loras(shape, (2,), device=device), nested=nested, backend="triton")
        assert got.packed.numel() == got.absmax.numel() == 0
        assert_same(got, written(requantize_nf4(weight, nested=nested, backend="torch")))


@pytest.mark.parametrize("blocksize", [32, 64, 1024])
@pytest.mark.parametrize("shape", [(96, 128), (33, 65), (1, 1)], ids=str)
def test_the_twin_has_the_codes_of_bitsandbytes(shape, blocksize):
    bnb = pytest.importorskip("bitsandbytes.functional")
    w = weights(shape)
    packed, state = bnb.quantize_4bit(w, blocksize=blocksize, quant_type="nf4", compress_statistics=False)
    assert_same(
        requantize_nf4(w, blocksize=blocksize, nested=False), [packed.reshape(-1).numpy(), state.absmax.numpy()]
    )


NF4 = empty_nf4((4, 64), blocksize=64, nested=True, device=CPU)


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        (empty_nf4((4, 32), blocksize=64, nested=True, device=CPU), r"output is \(4, 32\) on cpu; expected \(4, 64\)"),
        (replace(NF4, absmax=NF4.absmax[:3]), r"`absmax` of the output is \(3,\)"),
        (
            replace(NF4, nested=replace(NF4.nested, blocksize=512)),
            "nested blocksize of the output is 512; expected 256",
        ),
    ],
)
def test_outputs_that_do_not_fit_are_refused(out, sentence):
    with pytest.raises(RegistryError, match=sentence):
        requantize_nf4(torch.zeros(4, 64), out=out)


def test_a_size_of_blocks_that_there_is_not_is_refused():
    with pytest.raises(RegistryError, match="blocksize of the output is 100; expected one of 32, 64"):
        requantize_nf4(torch.zeros(4, 64), blocksize=100)
