"""Factors in the order of the matrix units: their layout against the documented one, and the products in the
interpreter. The layout of a warp's registers is what `test_aot.py` finds no exchange for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from lora_kernels.ops.arrange import Arrangement, arrange
from lora_kernels.ops.fragments import factor_pointer, in_columns, load_a, load_b, multiply
from tests.kernels.ops.inputs import BF16, FP16, FP32, laid_out, normal


def arrange_a(factors: Sequence[torch.Tensor], *, rank: int, width: int, groups: int = 1) -> torch.Tensor:
    """A of a job's adapters, each (r, i), as (groups, adapters, rank * width), filled with zeros. rank: a multiple of
    16 and at least each r. width: columns of a group. groups: the number of groups is a multiple of it."""
    groups *= -(-factors[0].shape[1] // (width * groups))
    filled = _filled(factors, rank, groups * width)
    # rank = (slice, k3, k2 k1, k0), columns = (group, n2 n1, n4, n3, n0); without n4 in groups of 16.
    parts = filled.reshape(len(factors), rank // 16, 2, 4, 2, groups, 4, width // 16, 2, 2)
    return parts.permute(5, 0, 1, 7, 6, 9, 3, 8, 2, 4).reshape(groups, len(factors), rank * width)


def arrange_b(factors: Sequence[torch.Tensor], *, rank: int, rows: int, slice_rank: int) -> torch.Tensor:
    """B of a job's adapters, each (o, r), as (blocks, adapters, rank * rows), filled with zeros. rows: of a block, a
    multiple of 16. slice_rank: rank that a kernel multiplies at once; a block is stored slice by slice."""
    blocks = -(-factors[0].shape[0] // rows)
    filled = _filled(factors, blocks * rows, rank)
    # rows = (block, unit, m3, m2 m1 m0), rank = (slice, unit, k3, k2 k1, k0).
    parts = filled.reshape(len(factors), blocks, rows // 16, 2, 8, rank // slice_rank, slice_rank // 16, 2, 4, 2)
    return parts.permute(1, 0, 5, 2, 6, 4, 8, 7, 3, 9).reshape(blocks, len(factors), rank * rows)


def split_in_planes(factor: torch.Tensor) -> list[torch.Tensor]:
    """Three matrices of bf16 whose sum is a float32 matrix, the largest first. Elements below 2^-110 lose bits, and
    infinite ones become NaN."""
    left = factor.float()
    found = []
    for _ in range(3):
        found.append(left.bfloat16())
        left = left - found[-1].float()
    return found


def _filled(factors: Sequence[torch.Tensor], rows: int, columns: int) -> torch.Tensor:
    """Matrices (adapters, rows, columns) with zeros behind each."""
    filled = factors[0].new_zeros((len(factors), rows, columns))
    for place, factor in zip(filled, factors, strict=True):
        place[: factor.shape[0], : factor.shape[1]] = factor
    return filled


@triton.jit
def product_kernel(
    p_b: tl.tensor, p_a: tl.tensor, p_out: tl.tensor, FACTOR: tl.constexpr,
    ROWS: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Program (block, group)."""
    p_b = factor_pointer(tl.load(p_b), FACTOR) + tl.program_id(0) * ROWS * RANK + tl.arange(0, ROWS * RANK)
    p_a = factor_pointer(tl.load(p_a), FACTOR) + tl.program_id(1) * RANK * WIDTH + tl.arange(0, RANK * WIDTH)
    b_zero = tl.zeros((ROWS, WIDTH), tl.float32)
    b_product = multiply(load_b(p_b, ROWS, RANK, FACTOR), load_a(p_a, RANK, WIDTH, FACTOR), b_zero)
    o_rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    width = tl.num_programs(1) * WIDTH
    tl.store(p_out + o_rows[:, None] * width + o_columns[None, :], in_columns(b_product, ROWS, WIDTH))


@pytest.mark.parametrize(("dtype", "element"), [(BF16, tl.bfloat16), (FP16, tl.float16)], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("rows", "rank", "width"), [(32, 16, 32), (16, 64, 32), (32, 32, 16)])
def test_the_product_has_its_columns_in_the_order_of_w(dtype, element, rows, rank, width, device):
    b, a = normal((2 * rows - 3, rank - 5), seed=1), normal((rank - 5, 3 * width - 8), seed=2)
    b, a = ((10 * factor).round().to(dtype).to(device) for factor in (b, a))
    arranged_b = arrange_b([b], rank=rank, rows=rows, slice_rank=rank)
    arranged_a = arrange_a([a], rank=rank, width=width)
    addresses = torch.tensor([arranged_b.data_ptr(), arranged_a.data_ptr()], device=device)
    out = torch.full((2 * rows, 3 * width), -1.0, device=device)
    product_kernel[(2, 3)](
        addresses[:1], addresses[1:], out, FACTOR=element, ROWS=rows, RANK=rank, WIDTH=width, num_warps=1
    )
    expected = torch.zeros_like(out)
    expected[: b.shape[0], : a.shape[1]] = b.float() @ a.float()
    assert torch.equal(out, expected)


def test_a_lane_finds_its_elements_side_by_side():
    """Lane 4 g + q of mma.m16n8k16 has A[2q .. 2q + 1 and 2q + 8 .. 2q + 9, g] of each 8 columns, and B at rows g and
    g + 8 (PTX ISA, matrix fragments). Here the MMA's A is our B, and its B our A."""
    a = torch.arange(16 * 32).reshape(16, 32)
    lanes = arrange_a([a], rank=16, width=32).reshape(2, 32, 2, 2, 2)  # n4, lane, n3, k3, k0
    for n4, lane, n3, k3, k0 in ((0, 0, 0, 0, 0), (1, 5, 1, 1, 1), (0, 31, 1, 0, 1), (1, 14, 0, 1, 0)):
        g, q = divmod(lane, 4)
        column = 8 * (g // 2) + 4 * n4 + 2 * n3 + g % 2
        assert lanes[n4, lane, n3, k3, k0] == a[8 * k3 + 2 * q + k0, column]
    b = torch.arange(16 * 16).reshape(16, 16)
    lanes = arrange_b([b], rank=16, rows=16, slice_rank=16).reshape(32, 2, 2, 2)  # lane, k3, m3, k0
    for lane, k3, m3, k0 in ((0, 0, 0, 0), (5, 1, 0, 1), (31, 0, 1, 1), (14, 1, 1, 0)):
        g, q = divmod(lane, 4)
        assert lanes[lane, k3, m3, k0] == b[8 * m3 + g, 8 * k3 + 2 * q + k0]


def test_adapters_and_slices_of_a_block_follow_each_other():
    factors = [normal((20, 40), seed=seed) for seed in (1, 2)]
    one = [
        arrange_b([factor[:, 32 * i : 32 * i + 32]], rank=32, rows=32, slice_rank=32)
        for factor in factors
        for i in (0, 1)
    ]
    both = arrange_b(factors, rank=64, rows=32, slice_rank=32)
    assert torch.equal(both.flatten(), torch.cat([part.flatten() for part in one]))


def test_planes_are_a_float32_matrix_and_eight_of_their_products_almost_its_products():
    rng = np.random.default_rng(0)
    values = rng.uniform(1, 2, (4, 100_000)).astype(np.float32)
    # The middle plane is largest close to half a unit in the last place of the first.
    values[2:] = 1 + 2.0**-8 - rng.uniform(0, 2.0**-14, (2, 100_000))
    values *= np.exp2(rng.integers(-100, 100, (4, 1)))
    split = [part.double().numpy() for part in split_in_planes(torch.from_numpy(values))]
    np.testing.assert_array_equal(sum(split), values)
    for b, a in ((0, 1), (2, 3), (0, 2)):
        product = values[b].astype(np.float64) * values[a]
        eight = sum(split[i][b] * split[j][a] for i in range(3) for j in range(3) if (i, j) != (2, 2))
        assert np.abs(eight / product - 1).max() <= 2.0**-33


@pytest.mark.parametrize("layout", ["rows", "transposed", "odd"])
@pytest.mark.parametrize(
    ("dtype", "planes", "rank", "width"), [(BF16, 1, 16, 32), (FP16, 1, 128, 16), (FP32, 3, 32, 32)]
)
def test_the_kernels_arrange_as_torch_does(layout, dtype, planes, rank, width, device):
    """Several jobs, of different shapes and numbers of adapters."""
    arrangement = Arrangement(rank, rows=32, width=width, slice_rank=min(rank, 64), groups=2, planes=planes)
    jobs = []
    for seed, (rows, columns, ranks) in enumerate([(40, 72, (rank, 3)), (5, 5, ()), (33, 8, (rank - 1,))]):
        pairs = [
            (normal((rows, r), seed=seed, dtype=dtype), normal((r, columns), seed=9 + seed, dtype=dtype)) for r in ranks
        ]
        jobs.append([(laid_out(b, layout).to(device), laid_out(a, layout).to(device)) for b, a in pairs])
    got, _ = arrange(jobs, dtype, arrangement, device)
    split = split_in_planes if planes > 1 else lambda factor: [factor]
    for (b, a), pairs in zip(got, jobs, strict=True):
        if not pairs:
            assert (b.numel(), a.numel()) == (0, 0)
            continue
        expected_b = arrange_b(
            [part for factor, _ in pairs for part in split(factor)], rank=rank, rows=32, slice_rank=min(rank, 64)
        )
        expected_a = arrange_a(
            [part for _, factor in pairs for part in split(factor)], rank=rank, width=width, groups=2
        )
        assert torch.equal(b.cpu(), expected_b.cpu())
        assert torch.equal(a.cpu(), expected_a.cpu())
