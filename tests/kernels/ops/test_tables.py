"""The tables of a launch: what kernels are told about memory is so. The interpreter would not notice if it were not."""

from __future__ import annotations

import pytest
import torch

from lora_kernels.ops import LowRank, tables
from lora_kernels.ops.single import single
from tests.kernels.ops.inputs import BF16, FP16, FP32, laid_out, lora, normal

CPU = torch.device("cpu")
SHAPE = (64, 72)


def build(w: torch.Tensor, *adapters: LowRank, transpose: bool = True) -> tables.Tables:
    return tables.build([(w, w)], [adapters], rows=32, columns=64, transpose=transpose)


@pytest.mark.parametrize("rank", [1, 5, 8, 16])
@pytest.mark.parametrize("layout", ["rows", "transposed", "odd", "stepped"])
def test_factors_are_aligned_and_filled_up_to_eights(rank, layout):
    given = lora(SHAPE, rank, seed=0, device=CPU)
    table = build(normal(SHAPE, seed=1), LowRank(laid_out(given.b, layout), laid_out(given.a, layout), given.scale))
    b_address, a_address, padded = table.factors[0].tolist()
    assert b_address % 16 == a_address % 16 == 0
    assert padded == -(-rank // 8) * 8
    _, _, b, a = table.keep
    assert b.is_contiguous()
    assert a.is_contiguous()
    assert torch.equal(b.float() @ a.float(), given.b.float() @ given.a.float())


@pytest.mark.parametrize(
    ("layout", "aligned"),
    [("rows", True), ("transposed", True), ("padded", True), ("odd", False), ("stepped", False)],
)
def test_aligned_is_said_of_what_is(layout, aligned):
    table = build(laid_out(normal(SHAPE, seed=1, dtype=BF16), layout), lora(SHAPE, 4, seed=0, device=CPU))
    assert table.aligned is aligned


def test_a_number_of_columns_that_is_no_multiple_of_eight_is_not_aligned():
    assert not build(torch.zeros(64, 68)).aligned
    assert build(torch.zeros(64, 68).T).aligned is False
    assert build(torch.zeros(68, 64)).aligned


def test_a_matrix_by_columns_is_transposed_with_its_numbers():
    w = laid_out(torch.zeros(SHAPE), "transposed")
    assert not build(w).numbered_along_rows
    job = dict(zip(tables.FIELDS, build(w).jobs[0].tolist(), strict=True))
    assert (job["rows"], job["columns"], job["w_row"], job["w_column"]) == (72, 64, 64, 1)
    assert (job["e_row"], job["e_column"]) == (1, 72)
    assert build(w, transpose=False).numbered_along_rows


def test_factors_of_several_types_are_widened():
    mixed = build(
        torch.zeros(SHAPE), lora(SHAPE, 4, seed=0, device=CPU), lora(SHAPE, 4, seed=1, dtype=FP16, device=CPU)
    )
    assert mixed.factor_dtype == FP32
    assert build(torch.zeros(SHAPE), lora(SHAPE, 4, seed=0, device=CPU)).factor_dtype == BF16


def test_programs_cover_each_matrix_once():
    shapes = [(33, 64), (0, 9), (1, 1), (64, 65), (9, 0)]
    table = tables.build([(torch.zeros(s), torch.zeros(s)) for s in shapes], [()] * 5, rows=32, columns=64)
    assert table.tile_counts == (2, 0, 1, 4, 0)
    assert table.owners.tolist() == [0, 0, 2, 3, 3, 3, 3]
    assert table.jobs[:, tables.FIELDS.index("start")].tolist() == [0, 2, 2, 3, 7]


def test_what_is_laid_out_for_blocks_of_rows_and_what_is_not(device):
    w = normal(SHAPE, seed=1, dtype=BF16).to(device)
    one, two = (lora(SHAPE, 17, seed=seed, device=device) for seed in (0, 1))
    given = single(w, w, [one, two], most=2, unroll=2)
    assert (given.rank, given.blocks, given.groups) == (32, 4, 3)
    # Two adapters; blocks of 16 rows; 72 columns filled up to 128, two pairs of groups.
    assert given.a.shape == (4, 2, 32 * 32)
    assert given.b.shape == (4, 2, 32 * 16)
    assert given.row_stride == 72
    by_columns = single(laid_out(w, "transposed"), laid_out(w, "transposed"), [one], most=1)
    assert by_columns.row_stride is None
    assert by_columns.w.shape == (72, 64)
    wide = lora(SHAPE, 4, seed=0, device=device, dtype=FP32)
    tall = lora(SHAPE, 129, seed=0, device=device)
    refused = [
        (w.float(), w, [one]),
        (w, w.float(), [one]),
        (w, w, [wide]),
        (w, w, [tall]),
        (w, w, []),
        (w, w, [one] * 3),
    ]
    for matrix, out, adapters in (*refused, (laid_out(w, "odd"), w, [one]), (w, laid_out(w, "stepped"), [one])):
        assert single(matrix, out, adapters, most=2) is None
