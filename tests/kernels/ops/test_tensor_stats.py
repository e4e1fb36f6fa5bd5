"""Statistics of tensors: against float64, for any shape, layout and content."""

from __future__ import annotations

import pytest
import torch

from lora_contract.errors import RegistryError
from lora_kernels.ops import tables, tensor_stats, tensor_stats_grouped
from lora_kernels.ops.configs import TENSOR_STATS
from lora_kernels.ops.launch import options
from lora_kernels.ops.tensor_stats import Summary
from tests.kernels.ops.inputs import BF16, FP16, FP32, laid_out, normal

# Exact squares: seven additions in float32 of those of 16 bits, then at most 2^15 in float64.
ERROR = {BF16: 7 * 2.0**-24 + 2.0**-38, FP16: 7 * 2.0**-24 + 2.0**-38, FP32: 2.0**-38}


def expected(tensor: torch.Tensor) -> Summary:
    return tensor_stats(tensor, backend="torch")


def assert_same(got: Summary, tensor: torch.Tensor) -> None:
    right = expected(tensor)
    assert got.sum_squares == pytest.approx(right.sum_squares, rel=ERROR[tensor.dtype], abs=0)
    assert got[1:] == right[1:]


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (4097,), (7, 13), (64, 128), (3, 5, 7), (0, 5), (2, 3, 0)], ids=str)
def test_any_shape(shape, dtype, device):
    tensor = normal(shape, seed=1, dtype=dtype).to(device)
    assert_same(tensor_stats(tensor, backend="triton"), tensor)


@pytest.mark.parametrize("layout", ["transposed", "padded", "odd", "stepped"])
def test_any_layout(layout, device):
    tensor = normal((70, 40), seed=1, dtype=BF16).to(device)
    assert_same(tensor_stats(laid_out(tensor, layout), backend="triton"), tensor)


@pytest.mark.parametrize("change", [lambda t: t.permute(2, 0, 1), lambda t: t[:, ::2, 1:], lambda t: t.transpose(0, 1)])
def test_more_than_two_dimensions(change, device):
    tensor = change(normal((6, 10, 9), seed=1).to(device))
    assert_same(tensor_stats(tensor, backend="triton"), tensor)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_what_is_not_finite_is_counted_and_left_out(dtype, device):
    tensor = normal((33, 70), seed=1, dtype=dtype).to(device)
    tensor[0, 0], tensor[5, 69], tensor[32, 69] = torch.nan, torch.inf, -torch.inf
    got = tensor_stats(tensor, backend="triton")
    assert got.non_finite == 3
    assert_same(got, tensor)


def test_largest_and_smallest_numbers_keep_their_squares(device):
    largest, smallest = float(torch.finfo(FP32).max), 2.0**-149
    got = tensor_stats(torch.tensor([-largest, largest, largest], device=device), backend="triton")
    assert got == Summary(3 * largest**2, largest, 0)
    assert got.norm == pytest.approx(3**0.5 * largest)
    assert tensor_stats(torch.tensor([smallest, -smallest], device=device), backend="triton") == Summary(
        2 * smallest**2, smallest, 0
    )
    subnormal = torch.tensor([1, 0x8003], dtype=torch.uint16).view(BF16).to(device)
    assert tensor_stats(subnormal, backend="triton") == Summary(10 * (2.0**-133) ** 2, 3 * 2.0**-133, 0)


@pytest.mark.parametrize("size", [2.0**-133, 2.0**-70, 2.0**-62.5, 2.0**-55, 1.0, 2.0**61, 2.0**62, 2.0**70, 2.0**126])
def test_squares_that_float32_cannot_hold_are_as_exact_as_others(size, device):
    """Of each size, with a stretch of another size beside it, zeros, and one small element among large ones."""
    values = normal((3 * TENSOR_STATS.columns + 40,), seed=2).clamp(-1.9, 1.9).double() * size
    values[: TENSOR_STATS.columns] *= min(1.0, 1 / size)
    values[-40:-8], values[-1] = 0, 2.0**-130
    tensor = values.to(BF16).to(device)
    assert_same(tensor_stats(tensor, backend="triton"), tensor)


def test_only_zeros(device):
    assert tensor_stats(torch.zeros(9000, dtype=BF16, device=device), backend="triton") == Summary(0, 0, 0)


def test_elements_past_31_bits(device):
    """The last stretch of a tensor of more than 2^31 elements, in memory of which only that stretch is ever touched."""
    from lora_kernels.ops.tensor_stats import kernel

    tensor = torch.empty((1, 2**31 + 4096), dtype=BF16, device=device)
    tensor[0, -4096:] = 0
    tensor[0, -1] = 3
    table = tables.build([(tensor, tensor)], [()], rows=TENSOR_STATS.rows, columns=TENSOR_STATS.columns)
    # The launch's only program takes the place of the last.
    table.jobs[0, tables.FIELDS.index("start")] = 1 - table.programs
    partials = torch.zeros((1, kernel.PARTIALS), dtype=torch.float64, device=device)
    kernel.tensor_stats_kernel[(1,)](
        table.jobs, table.owners, partials,
        **kernel.constants(BF16, TENSOR_STATS, aligned=True), **options(TENSOR_STATS),
    )  # fmt: skip
    assert partials.tolist() == [[9, 3, 0]]


def test_a_group_gives_each_what_it_gets_alone(device):
    tensors = [
        normal(shape, seed=seed, dtype=dtype).to(device)
        for seed, (shape, dtype) in enumerate(
            [((65, 40), BF16), ((0,), BF16), ((5000,), FP32), ((3, 3), BF16), ((), FP32), ((9, 9), FP16)]
        )
    ]
    together = tensor_stats_grouped(tensors, backend="triton")
    again = tensor_stats_grouped(tensors[::-1], backend="triton")[::-1]
    assert together == again == [tensor_stats(tensor, backend="triton") for tensor in tensors]


def test_nothing_is_nothing():
    assert tensor_stats_grouped([]) == []


def test_other_types_are_refused_by_place():
    with pytest.raises(RegistryError, match="Tensor 1 has the dtype"):
        tensor_stats_grouped([torch.zeros(2), torch.zeros(2, dtype=torch.int8)])
