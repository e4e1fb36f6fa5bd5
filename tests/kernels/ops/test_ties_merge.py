"""TIES from factors: exact selection, the vote, the mean.

Most tests use factors of small integers, whose products and sums are exact in float32: whatever computes them, the
deltas and so the result are the same bytes.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from lora_contract.errors import RegistryError
from lora_kernels.ops import LowRank, ties_merge
from lora_kernels.ops.configs import SPARSE
from lora_kernels.ops.sparse import aligned as sparse_rows
from lora_kernels.ops.sparse.in_torch import combine
from lora_kernels.ops.testing import Guarded
from lora_kernels.ops.ties_merge import aligned as count_rows
from lora_kernels.ops.ties_merge import in_torch as reference
from lora_kernels.ops.ties_merge import limits
from lora_kernels.ops.ties_merge.limits import Search
from tests.kernels.ops import ptx
from tests.kernels.ops.inputs import BF16, FP16, FP32, bits, laid_out, loras, normal, whole

WEIGHTS = [1.0, 0.5, -2.0, 0.7]


@pytest.mark.parametrize("density", [1e-9, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("method", ["total", "frequency"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (40, 72)], ids=str)
def test_equal_to_the_twin(shape, method, density, device):
    w, adapters = normal(shape, seed=1).to(device), whole(shape, (3, 4, 17), device=device)
    guarded = Guarded(shape, FP32, device, padding=5)
    recipe = {"weights": WEIGHTS[:3], "density": density, "majority_sign_method": method}
    ties_merge(w, adapters, out=guarded.tensor, backend="triton", **recipe)
    guarded.check()
    assert torch.equal(guarded.tensor, ties_merge(w, adapters, backend="torch", **recipe))


@pytest.mark.parametrize("kinds", [(BF16, BF16, BF16), (FP16, BF16, FP16), (FP32, FP16, FP32)], ids=str)
@pytest.mark.parametrize("layout", ["rows", "transposed", "odd", "stepped"])
def test_any_type_and_layout(kinds, layout, device):
    w_dtype, out_dtype, factor_dtype = kinds
    w = normal((40, 72), seed=1, dtype=w_dtype).to(device)
    adapters = whole((40, 72), (3, 8), dtype=factor_dtype, device=device)
    recipe = {"weights": WEIGHTS[:2], "density": 0.3, "dtype": out_dtype}
    got = ties_merge(laid_out(w, layout), adapters, backend="triton", **recipe)
    assert torch.equal(got, ties_merge(w, adapters, backend="torch", **recipe))


@pytest.mark.parametrize("density", [0.001, 0.1, 0.77])
def test_the_limit_is_the_kth_largest_magnitude(density, device, monkeypatch):
    from lora_kernels.ops.merge_low_rank import any_layout
    from lora_kernels.ops.ties_merge import kernel

    shape = (70, 72)
    zero, adapters = torch.zeros(shape, device=device), loras(shape, (16, 5), dtype=FP32, device=device)
    found = kernel.limits(zero, adapters, density)
    # Counting in two programs or in many gives the same: integers.
    monkeypatch.setattr(kernel, "COUNT_PROGRAMS", 2)
    assert torch.equal(found, kernel.limits(zero, adapters, density))
    for adapter, limit in zip(adapters, found, strict=True):
        delta = torch.empty_like(zero)
        any_layout.launch([(zero, [adapter], delta)], stats=False, config=SPARSE)
        magnitudes = delta.abs().view(torch.int32).flatten()
        assert int((magnitudes >= limit).sum()) == int(density * zero.numel())
        assert int(limit) in magnitudes


# Bits of the lowest bin, and the width of a bin: all magnitudes, below the limit, above it, near it, wide bins.
BRACKETS = [(0, 13), (0, 0), (2**31 - 1, 0), (0x3F000000, 0), (0x3F000000, 5), (0x3E000000, 13)]


@pytest.mark.parametrize("density", [0.001, 0.2, 0.999])
def test_a_bracket_that_misses_costs_passes_and_changes_nothing(density, device, monkeypatch):
    """A sample may mislead: whatever the first bracket, the limit is the same. One delta for each bracket."""
    from lora_kernels.ops.ties_merge import kernel

    shape = (31, 40)
    zero, (adapter,) = torch.zeros(shape, device=device), loras(shape, (16,), dtype=FP32, device=device)
    expected = kernel.limits(zero, [adapter], density)
    low, shift = torch.tensor(BRACKETS, device=device).T.contiguous()
    monkeypatch.setattr(kernel, "start", lambda *_: Search(low, shift, low * 0))
    assert torch.equal(kernel.limits(zero, [adapter] * len(BRACKETS), density), expected.expand(len(BRACKETS)))


def test_the_sample_brackets_the_limit(device):
    """Of a matrix that is large enough for it, in one pass and with bins of a few patterns."""
    shape, density = (1024, 1024), 0.2
    adapters = loras(shape, (16, 4), dtype=FP32, device=device)
    keep = int(density * shape[0] * shape[1])
    search = limits.start(shape, adapters, keep)
    assert max(search.shift) <= 1
    for adapter, low, shift in zip(adapters, search.low, search.shift, strict=True):
        magnitudes = ((adapter.b @ adapter.a) * adapter.scale).abs().view(torch.int32).flatten()
        above = magnitudes >= low + (limits.BINS << shift)
        within = (magnitudes >= low) & ~above
        assert int(above.sum()) < keep <= int(above.sum()) + int(within.sum())
        assert int(within.sum()) < 0.03 * len(magnitudes)


def test_the_ptx_of_a_tally_is_its_plain_form():
    """The instructions of `kernel.tally`, one by one on 32 bits, against the form that the interpreter runs."""
    edges = [0, 1, 2, 0x3F000000, 0x7F800000, 0x7FFFFFFF, limits.BINS - 1, limits.BINS, limits.BINS + 1]
    lows = np.array(edges, np.int64)
    for shift in (0, 1, 5, limits.COARSE):
        near = (lows[:, None] + (np.array([-1, 0, 1, limits.BINS - 1, limits.BINS, limits.BINS + 1]) << shift)).ravel()
        bits = np.unique(np.concatenate((near, near + (1 << shift) - 1, lows, [-1])))
        bits = bits[(bits >= -1) & (bits < 2**31)].astype(np.int32)
        for low in lows.astype(np.int32):
            moved = (bits - low) >> np.int32(shift)  # sub.s32, shr.s32
            inside = moved.view(np.uint32) < np.uint32(limits.BINS)  # setp.lt.u32
            below = (bits - low).view(np.uint32) >> np.uint32(31)  # shr.u32
            bins = (bits.astype(np.int64) - int(low)) >> shift
            np.testing.assert_array_equal(inside, (bins >= 0) & (bins < limits.BINS))
            np.testing.assert_array_equal(below, bits < low)


def test_infinite_elements_are_counted_once_and_those_outside_not_at_all(device):
    from lora_kernels.ops.ties_merge import kernel

    zero, (adapter,) = torch.zeros(70, 72, device=device), loras((70, 72), (5,), dtype=FP32, device=device)
    finite = adapter.a.clone()
    adapter.a[0, 3] = torch.inf
    (limit,) = kernel.limits(zero, [adapter], 0.1)
    # The 70 elements of column 3 are the largest; without that column, the limit lies 70 places higher.
    rest = LowRank(adapter.b, finite[:, [column for column in range(72) if column != 3]].contiguous(), adapter.scale)
    (expected,) = kernel.limits(torch.zeros(70, 71, device=device), [rest], (504 - 70 + 0.5) / (70 * 71))
    assert int(limit) == int(expected)


@pytest.mark.parametrize("method", ["total", "frequency"])
@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_aligned_matrices_of_16_bits_equal_to_the_twin(count, method, device, monkeypatch):
    """Up to four adapters stay in registers; W has both zeros, whose signs show what was added. Blocks of rows, groups
    of columns and segments, here of 32, are not full."""
    monkeypatch.setattr(sparse_rows, "SPARSE_ROWS", replace(sparse_rows.SPARSE_ROWS, columns=32))
    monkeypatch.setattr(count_rows, "COUNT_ROWS", replace(count_rows.COUNT_ROWS, columns=32))
    shape = (19, 40)
    w = normal(shape, seed=1, dtype=BF16).to(device)
    w[:, 3], w[:, 4] = 0.0, -0.0
    adapters = whole(shape, (3, 17, 16, 33, 4)[:count], dtype=BF16, device=device)
    for density in (1e-9, 0.3, 1.0):
        recipe = {"weights": [*WEIGHTS, -1.5][:count], "density": density, "majority_sign_method": method}
        guarded = Guarded(shape, BF16, device, padding=8)
        ties_merge(w, adapters, out=guarded.tensor, backend="triton", **recipe)
        guarded.check()
        np.testing.assert_array_equal(bits(guarded.tensor), bits(ties_merge(w, adapters, backend="torch", **recipe)))


def test_infinite_and_missing_numbers_of_16_bits(device):
    """Rows and columns of NaN and of both infinities, in the elected sum and in the trimmed deltas."""
    shape = (20, 40)
    w, adapters = normal(shape, seed=1, dtype=BF16).to(device), whole(shape, (3, 4, 2), dtype=BF16, device=device)
    adapters[0].a[1, 5], adapters[1].a[0, 6], adapters[2].b[3, 1] = torch.nan, torch.inf, -torch.inf
    for method in ("total", "frequency"):
        for density in (0.01, 0.2):
            recipe = {"weights": WEIGHTS[:3], "density": density, "majority_sign_method": method}
            got, expected = (ties_merge(w, adapters, backend=backend, **recipe) for backend in ("triton", "torch"))
            assert got.isnan().any()
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_the_ptx_of_the_vote_is_its_plain_form():
    edges = np.array([0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x7FFFFFFF], np.uint32)
    both = np.concatenate((edges, edges | np.uint32(1 << 31)))
    (found,) = ptx.run(sparse_rows.IS_POSITIVE.value, [both], outputs=1)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(found.view(np.float32), (both.view(np.float32) > 0).astype(np.float32))


def _nearest(value: Fraction) -> np.float32:
    """The float32 nearest to an exact number, ties to even: by way of float64, unless that lies between two."""
    near = np.float32(float(value))
    candidates = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(candidates, key=lambda one: (abs(Fraction(float(one)) - value), int(one.view(np.uint32)) & 1))


def test_the_quotient_of_compiled_kernels_is_rounded_correctly():
    """`sparse.aligned.quotient` in exact arithmetic, with every reciprocal that the processor may give: its error is at
    most a unit in the last place."""
    rng = np.random.default_rng(0)
    ordinary = (rng.integers(0, 1 << 23, 200) + (rng.integers(40, 250, 200) << 23)).astype(np.uint32).view(np.float32)
    edges = np.array([0x3F800000, 0x3F800001, 0x3FFFFFFF, 0x40400000, 0x40400001, 0x7F000000], np.uint32)
    for count in (1, 2, 3, 4):
        for step in (-1, 0, 1):
            given = np.float32(1) / np.float32(count)
            given = np.uint32(int(given.view(np.uint32)) + step).view(np.float32)
            exact = Fraction(float(given))
            left = _nearest(1 - count * exact)
            reciprocal = Fraction(float(_nearest(Fraction(float(left)) * exact + exact)))
            assert reciprocal == Fraction(float(np.float32(1) / np.float32(count)))
            for total in (*ordinary, *edges.view(np.float32), *-edges.view(np.float32), np.float32(0)):
                first = Fraction(float(_nearest(Fraction(float(total)) * reciprocal)))
                left = _nearest(Fraction(float(total)) - first * count)
                better = _nearest(Fraction(float(left)) * reciprocal + first)
                assert better == total / np.float32(count), (count, step, total)


def test_all_of_the_least_magnitude_that_is_kept_stay(device):
    ones = LowRank(torch.ones(3, 1, device=device), torch.tensor([[1.0, 2, 2, 2, 3]], device=device))
    got = ties_merge(torch.zeros(3, 5, device=device), [ones], weights=[1], density=0.3, backend="triton")
    assert got.tolist() == [[0, 2, 2, 2, 3]] * 3


def test_votes_by_hand(device):
    """One row; the columns are cases, the adapters' deltas stand in a column."""
    deltas = torch.tensor([[4.0, 4, -4, 1, 0, 0], [-1, -5, -4, -1, 0, 2], [-1, 0, 3, 0, 0, 0]], device=device)
    one = torch.ones(1, 1, device=device)
    adapters = [LowRank(one, row[None]) for row in deltas]
    zero = torch.zeros(1, 6, device=device)
    got = {
        method: ties_merge(
            zero, adapters, weights=[1, 2, -1], density=1, majority_sign_method=method, backend="triton"
        ).tolist()[0]
        for method in ("total", "frequency")
    }
    assert got["total"] == [4, -10, -6, 1, 0, 4]
    assert got["frequency"] == [-0.5, 4, -6, 1, 0, 4]


def test_nan_is_kept_and_shows(device):
    w, adapters = torch.zeros(40, 72, device=device), whole((40, 72), (3, 4), device=device)
    adapters[1].a[2, 71] = torch.nan
    for method in ("total", "frequency"):
        recipe = {"weights": WEIGHTS[:2], "density": 0.2, "majority_sign_method": method}
        got = ties_merge(w, adapters, backend="triton", **recipe)
        assert got[:, 71].isnan().all()
        assert got[:, :71].isfinite().all()
        torch.testing.assert_close(
            got, ties_merge(w, adapters, backend="torch", **recipe), rtol=0, atol=0, equal_nan=True
        )


def test_adapters_of_rank_zero_and_none_at_all(device):
    shape = (33, 20)
    w, (first, second) = normal(shape, seed=1).to(device), whole(shape, (3, 4), device=device)
    nothing = LowRank(w.new_zeros(33, 0), w.new_zeros(0, 20))
    got = ties_merge(w, [first, nothing, second], weights=[1, 5, -2], density=0.5, backend="triton")
    assert torch.equal(got, ties_merge(w, [first, second], weights=[1, -2], density=0.5, backend="triton"))
    assert torch.equal(ties_merge(w, [], weights=[], density=0.5, backend="triton"), w)
    empty = torch.zeros(0, 4, device=device)
    assert ties_merge(empty, whole((0, 4), (2,), device=device), weights=[1], density=0.5, backend="triton").shape == (
        0,
        4,
    )


@pytest.mark.parametrize("method", ["total", "frequency"])
def test_the_twin_is_what_peft_does_on_dense_deltas(method):
    from peft.utils.merge_utils import ties

    deltas = [normal((50, 40), seed=seed) for seed in range(3)]
    trimmed = [reference.trim(delta, 0.3) for delta in deltas]
    got = combine(deltas[0], trimmed, [0.5, -1.0, 2.0], method)
    expected = ties(deltas, torch.tensor([0.5, -1.0, 2.0]), density=0.3, majority_sign_method=method)
    # Sums of three in whatever order: two roundings, relative to the largest of the terms.
    torch.testing.assert_close(got, expected, rtol=2.0**-22, atol=2.0**-21)


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ({"weights": [1], "density": 0.5}, "1 weights for 2 adapters"),
        ({"weights": [1, 1], "density": 0}, "density is 0; expected more than 0"),
        ({"weights": [1, 1], "density": 1.5}, "density is 1.5"),
        ({"weights": [1, 1], "density": float("nan")}, "density is nan"),
        ({"weights": [1, 1], "density": 1, "majority_sign_method": "most"}, "method is `most`; expected `total`"),
    ],
)
def test_what_does_not_fit_is_refused(recipe, sentence):
    with pytest.raises(RegistryError, match=sentence) as caught:
        ties_merge(torch.zeros(3, 3), whole((3, 3), (1, 1), device=CPU), **recipe)
    assert caught.value.code == "invalid-request"
