"""The merge of low-rank updates: kernel against float64, never worse than plain torch, whatever the shape and layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_contract.errors import RegistryError
from lora_kernels.numeric.dtypes import decode, encode
from lora_kernels.ops import LowRank, MergeJob, merge_low_rank, merge_low_rank_grouped
from lora_kernels.ops.dispatch import interpreted
from lora_kernels.ops.merge_low_rank import in_torch as reference
from lora_kernels.ops.testing import Guarded, assert_close
from tests.kernels.ops.inputs import BF16, FP16, FP32, bits, laid_out, lora, loras, normal, whole
from tests.support.oracle import round_bf16

SHAPES = [(1, 1), (7, 13), (63, 65), (64, 128), (130, 72), (257, 3)]
KINDS = [(BF16, BF16, BF16), (FP32, FP32, FP32), (FP16, FP16, FP32), (BF16, FP32, FP16)]
# Rounding of fp32 sums to a tile's statistics: pairwise within 4096 elements, so far fewer than a hundred roundings.
STATS_ERROR = 100 * 2.0**-24


def exact(w: torch.Tensor, adapters: list[LowRank]) -> torch.Tensor:
    out = torch.empty(w.shape, dtype=torch.float64, device=w.device)
    reference.merge([(w, adapters, out)], stats=False, compute=torch.float64)
    return out


def twin(w: torch.Tensor, adapters: list[LowRank], dtype: torch.dtype) -> torch.Tensor:
    """On the processor, where float32 sums go along the rank as the kernel's do: cuBLAS splits them, and on an H200 its
    largest error was 2.7 times less than that of either, which were the same to the last bit."""
    there = [LowRank(one.b.cpu(), one.a.cpu(), one.scale) for one in adapters]
    return merge_low_rank(w.cpu(), there, dtype=dtype, backend="torch").weight


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_close_to_float64_as_torch_is(shape, kinds, device):
    w_dtype, out_dtype, factor_dtype = kinds
    w = normal(shape, seed=1, dtype=w_dtype).to(device)
    adapters = loras(shape, (16, 3, 40), dtype=factor_dtype, device=device)
    guarded = Guarded(shape, out_dtype, device, padding=5)
    merge_low_rank(w, adapters, out=guarded.tensor, backend="triton")
    guarded.check()
    # The order of summation along the rank differs from torch's: a factor of two on its largest error.
    assert_close(guarded.tensor, exact(w, adapters), as_torch=twin(w, adapters, out_dtype), factor=2.0)


# Ranks for each way in which an aligned merge holds factors: one adapter, several, too many, too high a rank.
FORMS = [(16,), (5, 16), (3, 8, 16, 1), (33,), (60, 64), (2,) * 6, (70, 5)]


# One dtype of W and of factors for each form, and all for the first; blocks that divide the matrix, and others.
CASES = [
    *(((64, 64), ranks, (BF16, BF16)) for ranks in FORMS),
    *(((17, 40), ranks, (BF16, FP32)) for ranks in FORMS),
    *(((17, 40), (5, 16), kinds) for kinds in ((FP16, FP16), (FP32, BF16), (FP32, FP32))),
    ((5, 1096), (3,), (BF16, BF16)),
]


@pytest.mark.parametrize(("shape", "ranks", "kinds"), CASES, ids=str)
def test_aligned_merges_of_whole_numbers_have_the_bits_of_torch(shape, ranks, kinds, device):
    w_dtype, factor_dtype = kinds
    w = normal(shape, seed=1, dtype=w_dtype, scale=4.0).to(device)
    adapters = whole(shape, ranks, dtype=factor_dtype, device=device)
    guarded = Guarded(shape, w_dtype, device, padding=8)
    plain = merge_low_rank(w, adapters, out=guarded.tensor, backend="triton").weight
    guarded.check()
    merged, got = merge_low_rank(w, adapters, stats=True, backend="triton")
    expected, known = merge_low_rank(w, adapters, stats=True, backend="torch")
    assert torch.equal(plain.cpu(), expected.cpu())
    assert torch.equal(merged, plain)
    assert got is not None
    assert known is not None
    assert got.sums.delta_delta == pytest.approx(known.sums.delta_delta, rel=STATS_ERROR)
    assert got.sums.realised_realised == pytest.approx(known.sums.realised_realised, rel=STATS_ERROR)
    assert (got.max_delta, got.non_finite) == (known.max_delta, 0)


@pytest.mark.parametrize("ranks", [(16,), (3, 8, 16, 1), (70, 5)], ids=str)
@pytest.mark.parametrize("kinds", [(BF16, BF16, BF16), (FP32, FP32, FP32)], ids=str)
def test_aligned_merges_are_close_to_float64_as_torch_is(ranks, kinds, device):
    w_dtype, out_dtype, factor_dtype = kinds
    w = normal((36, 40), seed=1, dtype=w_dtype).to(device)
    adapters = loras(w.shape, ranks, dtype=factor_dtype, device=device)
    guarded = Guarded(w.shape, out_dtype, device, padding=8)
    merge_low_rank(w, adapters, out=guarded.tensor, backend="triton")
    guarded.check()
    # The matrix units truncate where they add, in 40 steps for planes of rank 70.
    tiny = 2.0**-24 if device.type == "cpu" else 2.0**-20
    assert_close(guarded.tensor, exact(w, adapters), as_torch=twin(w, adapters, out_dtype), factor=2.0, tiny=tiny)


@pytest.mark.parametrize("shape", [(32, 64), (31, 63)], ids=["aligned", "any"])
@pytest.mark.parametrize("ranks", [(), (0,), (4,), (0, 4), (4, 4), (2,) * 6], ids=str)
def test_signs_of_zeros_are_those_of_torch(shape, ranks, device):
    """W + product, and + product: the sum begins with the first, and is +0 without any."""
    w = torch.full(shape, -0.0, dtype=BF16, device=device)
    adapters = [LowRank(one.b * 0, one.a, -1.0) for one in whole(shape, ranks, device=device, dtype=BF16)]
    got = merge_low_rank(w, adapters, backend="triton").weight
    np.testing.assert_array_equal(bits(got), bits(merge_low_rank(w, adapters, backend="torch").weight))


def test_bf16_is_the_correct_rounding_but_for_one_element_in_ten_thousand(device):
    w = normal((256, 256), seed=1, dtype=BF16).to(device)
    adapters = loras((256, 256), (16, 8), device=device)
    got = bits(merge_low_rank(w, adapters, backend="triton").weight)
    assert (got != round_bf16(exact(w, adapters).cpu().numpy())).sum() <= got.size // 10_000


@pytest.mark.parametrize("w_layout", ["transposed", "padded", "odd", "stepped"])
@pytest.mark.parametrize("out_layout", ["rows", "transposed", "padded"])
def test_any_layout_gives_the_same_bytes(w_layout, out_layout, device):
    shape = (72, 136)
    w, adapters = normal(shape, seed=1, dtype=BF16).to(device), loras(shape, (8, 5), device=device)
    strided = [LowRank(laid_out(one.b, "transposed"), laid_out(one.a, "odd"), one.scale) for one in adapters]
    guarded = Guarded(shape, BF16, device, padding=8, transposed=out_layout == "transposed")
    out = torch.empty(shape, dtype=BF16, device=device) if out_layout == "rows" else guarded.tensor
    merge_low_rank(laid_out(w, w_layout), strided, out=out, backend="triton")
    if out_layout != "rows":
        guarded.check()
    # A matrix that lies by columns is merged transposed: the products are the same, their sums may round otherwise.
    assert_close(out, exact(w, adapters), as_torch=twin(w, adapters, BF16), factor=2.0)
    if w_layout != "transposed":
        assert torch.equal(out, merge_low_rank(w, adapters, backend="triton").weight)


def test_in_place(device):
    w, adapters = normal((65, 40), seed=1, dtype=BF16).to(device), loras((65, 40), (4,), device=device)
    expected = merge_low_rank(w, adapters, backend="triton").weight
    got = merge_low_rank(w, adapters, out=w, backend="triton").weight
    assert got is w
    assert torch.equal(w, expected)


def test_strides_past_31_bits(device):
    # Two rows that lie 2^31 + 8 elements apart, in memory of which only their pages are ever touched.
    stride = 2**31 + 8
    values = normal((2, 40), seed=1, dtype=BF16).to(device)
    w = torch.empty(stride + 64, dtype=BF16, device=device).as_strided((2, 40), (stride, 1))
    w.copy_(values)
    adapters = loras((2, 40), (4,), device=device)
    merge_low_rank(w, adapters, out=w, backend="triton")
    assert torch.equal(w.clone(), merge_low_rank(values, adapters, backend="triton").weight)


@pytest.mark.parametrize("rank", [None, 0])
def test_no_adapter_is_one_rounding(rank, device):
    """Every bf16 number with the float32 numbers just below, on and just above the tie to its neighbour; all kinds of
    NaN; what overflows."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    patterns = np.concatenate([upper + low for low in (0, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).reshape(640, 512)
    w = torch.from_numpy(patterns.view(np.float32)).to(device)
    adapters = [] if rank is None else [lora((640, 512), rank, seed=0, device=device)]
    got = bits(merge_low_rank(w, adapters, dtype=BF16, backend="triton").weight)
    # What is added to W is +0, which turns -0 into +0 on every path.
    added = patterns.view(np.float32) + np.float32(0)
    np.testing.assert_array_equal(got, encode(added, "BF16", np.empty(patterns.shape, np.uint16)))


def test_every_bf16_is_widened_exactly(device):
    patterns = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    w = torch.from_numpy(patterns).view(BF16).to(device)
    got = merge_low_rank(w, [], dtype=FP32, backend="triton").weight.cpu().numpy()
    np.testing.assert_array_equal(got, decode(patterns, "BF16", np.empty((256, 256), np.float32)) + np.float32(0))


def test_fp16_rounds_to_nearest_even_and_to_infinity(device):
    step = 2.0**-24
    values = [65504, 65519, 65520, -70000, step, 0.5 * step, 0.75 * step, 1.5 * step, 2.5 * step, 2049, 2051, 1e-9]
    w = torch.tensor([values], device=device)
    got = merge_low_rank(w, [], dtype=FP16, backend="triton").weight.cpu().numpy()
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got[0], np.array(values, np.float32).astype(np.float16))


@pytest.mark.parametrize("columns", [70, 72], ids=["any", "aligned"])
@pytest.mark.parametrize("factor_dtype", [BF16, FP32], ids=str)
def test_what_is_not_finite_spreads_no_further_than_it_must(columns, factor_dtype, device):
    w = normal((70, columns), seed=1, dtype=BF16).to(device)
    (adapter,) = loras((70, columns), (8,), dtype=factor_dtype, device=device)
    w[3, 4] = torch.inf
    adapter.a[2, 69] = torch.nan
    adapter.b[69, 1] = -torch.inf
    merged, stats = merge_low_rank(w, [adapter], stats=True, backend="triton")
    expected = torch.zeros(70, columns, dtype=torch.bool)
    expected[3, 4], expected[:, 69], expected[69, :] = True, True, True
    assert torch.equal(~merged.isfinite().cpu(), expected)
    assert stats is not None
    assert stats.non_finite == int(expected.sum())
    assert stats.max_delta == torch.inf


@pytest.mark.parametrize("shape", [(130, 100), (130, 104)], ids=["any", "aligned"])
@pytest.mark.parametrize("kinds", [(BF16, BF16, BF16), (FP32, FP16, FP32)], ids=str)
def test_statistics(kinds, shape, device):
    w_dtype, out_dtype, factor_dtype = kinds
    w = normal(shape, seed=1, dtype=w_dtype).to(device)
    adapters = loras(shape, (16, 3), dtype=factor_dtype, device=device)
    # So small an update that much of it is lost in the rounding.
    adapters = [LowRank(one.b, one.a, one.scale * 2.0**-9) for one in adapters]
    plain, none = merge_low_rank(w, adapters, dtype=out_dtype, backend="triton")
    merged, got = merge_low_rank(w, adapters, dtype=out_dtype, stats=True, backend="triton")
    assert none is None
    assert torch.equal(plain, merged)
    before, after = w.double(), merged.double()
    delta, realised = exact(w, adapters) - before, after - before
    assert got is not None
    for found, left, right in (
        (got.sums.delta_delta, delta, delta),
        (got.sums.realised_delta, realised, delta),
        (got.sums.realised_realised, realised, realised),
    ):
        assert abs(found - float((left * right).sum())) <= STATS_ERROR * float((left * right).abs().sum())
    assert got.max_delta == pytest.approx(float(delta.abs().max()), rel=STATS_ERROR)
    assert got.non_finite == 0
    assert got.sums.kept is not None
    assert 0.3 < got.sums.kept < 1.5


def test_a_group_gives_each_what_it_gets_alone(device):
    shapes = [(65, 40), (0, 8), (3, 200), (128, 64), (5, 0), (1, 1), (64, 64)]
    kinds = [BF16, BF16, FP32, BF16, BF16, FP16, BF16]
    factors = [BF16, BF16, FP16, FP32, BF16, BF16, BF16]
    jobs = [
        MergeJob(
            laid_out(normal(shape, seed=seed, dtype=kind), "transposed" if seed == 3 else "rows").to(device),
            loras(shape, [(4,), (), (16, 3), (40,), (1,), (2, 2, 2), ()][seed], dtype=factors[seed], device=device),
        )
        for seed, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))
    ]
    together = merge_low_rank_grouped(jobs, stats=True, backend="triton")
    again = merge_low_rank_grouped(jobs[::-1], stats=True, backend="triton")[::-1]
    for job, one, other in zip(jobs, together, again, strict=True):
        alone = merge_low_rank(job.w, job.adapters, stats=True, backend="triton")
        assert torch.equal(one.weight, alone.weight)
        assert torch.equal(one.weight, other.weight)
        assert one.stats == alone.stats == other.stats


def test_no_job_is_no_launch():
    assert merge_low_rank_grouped([]) == []


def test_tensors_on_a_cpu_are_merged_by_torch():
    w, adapters = normal((6, 5), seed=1, dtype=BF16), loras((6, 5), (2,), device=torch.device("cpu"))
    assert torch.equal(merge_low_rank(w, adapters).weight, twin(w, adapters, BF16))


@pytest.mark.skipif(interpreted(), reason="kernels are interpreted in this process")
def test_triton_on_a_cpu_is_refused_where_it_cannot_run():
    with pytest.raises(RegistryError, match="device `cpu`; expected a CUDA device") as caught:
        merge_low_rank(normal((2, 2), seed=1), [], backend="triton")
    assert caught.value.code == "unsupported"


W = torch.zeros(4, 6)
B, A = torch.zeros(4, 2), torch.zeros(2, 6)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: merge_low_rank(torch.zeros(4), []), r"W has the shape \(4,\); expected a matrix"),
        (lambda: merge_low_rank(W.double(), []), "the dtype torch.float64; expected one of bfloat16"),
        (lambda: merge_low_rank(W, [LowRank(B, A), LowRank(B, A.T)]), r"A \(6, 2\) of adapter 1 do not match W \(4, 6\)"),
        (lambda: merge_low_rank(W, [LowRank(B.int(), A)]), "B of adapter 0 on W is .* torch.int32"),
        (lambda: merge_low_rank(W, [], dtype=torch.int8), "requested as torch.int8"),
        (lambda: merge_low_rank(W, [], out=W.T), r"output of W is \(6, 4\)"),
        (lambda: merge_low_rank(W, [], out=W, dtype=BF16), "expected .* torch.bfloat16"),
        (lambda: merge_low_rank(W, [], out=torch.zeros(1).expand(4, 6)), "expanded view"),
        (lambda: merge_low_rank_grouped([MergeJob(W, [], name="a"), MergeJob(W[0], [], name="q.weight")]), "q.weight has"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(call, sentence):
    with pytest.raises(RegistryError, match=sentence) as caught:
        call()
    assert caught.value.code == "invalid-request"
