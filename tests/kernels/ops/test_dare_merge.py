"""DARE from factors: masks that are the numpy stream's, bit for bit, and what is done with them.

As in `test_ties_merge.py`, factors of small integers make the deltas exact, so that results are compared bit for bit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from lora_contract.errors import RegistryError
from lora_kernels.numeric.philox import keep_mask, random_bits, stream_key
from lora_kernels.ops import LowRank, dare_merge
from lora_kernels.ops.sparse import aligned, philox
from lora_kernels.ops.sparse.kernel import random_words
from lora_kernels.ops.sparse.philox import first_round
from lora_kernels.ops.sparse.philox import random_words as shared_words
from lora_kernels.ops.tables import FIELDS
from lora_kernels.ops.testing import Guarded
from tests.kernels.ops import ptx
from tests.kernels.ops.inputs import BF16, FP16, FP32, bits, laid_out, normal, whole

KEYS = [stream_key(3, "a"), 2**64 - 1, 0]
FORMS = [None, "total", "frequency"]


@pytest.mark.parametrize("layout", ["rows", "transposed", "odd", "stepped"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (40, 72), (33, 130)], ids=str)
def test_the_mask_is_the_streams(shape, layout, device):
    w = laid_out(torch.zeros(shape, device=device), layout)
    ones = LowRank(w.new_ones(shape[0], 1), w.new_ones(1, shape[1]))
    for key in KEYS:
        got = dare_merge(w, [ones], weights=[0.25], density=0.25, keys=[key], backend="triton")
        expected = keep_mask(key, 0, w.numel(), 0.25).reshape(shape)
        np.testing.assert_array_equal(got.cpu().numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("shape", [(1, 8), (19, 136)], ids=str)
def test_the_mask_of_an_aligned_matrix_of_16_bits_is_the_streams(shape, device, monkeypatch):
    """Blocks of 16 rows, groups of 32 columns, here segments of 64, none of them full."""
    monkeypatch.setattr(aligned, "SPARSE_ROWS", replace(aligned.SPARSE_ROWS, columns=64))
    w = torch.zeros(shape, dtype=BF16, device=device)
    ones = LowRank(w.new_ones(shape[0], 1), w.new_ones(1, shape[1]))
    # Each adapter adds a power of two, so that the sum shows all masks.
    weights = [0.25, 0.5, 1.0]
    got = dare_merge(w, [ones] * 3, weights=weights, density=0.25, keys=KEYS, backend="triton")
    kept = [keep_mask(key, 0, w.numel(), 0.25).reshape(shape) for key in KEYS]
    expected = sum(mask * 2.0**power for power, mask in enumerate(kept))
    np.testing.assert_array_equal(got.float().cpu().numpy(), expected)


def test_the_ptx_of_a_product_of_64_bits_is_its_plain_form():
    edges = np.array([0, 1, 2, 2**16 - 1, 2**31, 2**32 - 1, 0xD2511F53, 0xCD9E8D57], np.uint32)
    one, other = (part.ravel() for part in np.meshgrid(edges, edges))
    high, low = ptx.run(philox.PRODUCT.value, [one, other], outputs=2)
    products = one.astype(np.uint64) * other
    np.testing.assert_array_equal(high, products >> np.uint64(32))
    np.testing.assert_array_equal(low, products & np.uint64(2**32 - 1))


@triton.jit
def shared_words_kernel(out, counters, key):
    high, low = first_round(tl.load(counters + tl.arange(0, 4)).to(tl.uint32))
    key_0, key_1 = tl.load(key).to(tl.uint32), (tl.load(key) >> 32).to(tl.uint32)
    words = shared_words(high, low, key_0, key_1)
    for index in tl.static_range(4):
        tl.store(out + tl.arange(0, 4) * 4 + index, words[index].to(tl.int32, bitcast=True))


def test_words_for_shared_counters_are_the_streams(device):
    counters = [0, 1, 2**31, 2**32 - 1]
    for key in (0, stream_key(1, "w"), 2**64 - 1):
        signed = key - 2**64 if key >= 2**63 else key
        out = torch.zeros((4, 4), dtype=torch.int32, device=device)
        shared_words_kernel[(1,)](out, torch.tensor(counters, device=device), torch.tensor([signed], device=device))
        expected = np.stack([random_bits(key, 4 * counter, 4) for counter in counters])
        np.testing.assert_array_equal(out.cpu().numpy().view(np.uint32), expected)


@triton.jit
def words_kernel(out, job, key, GROUPED: tl.constexpr):
    rows, columns = tl.arange(0, 2).to(tl.int64), tl.arange(0, 16).to(tl.int64)
    found = random_words(tl.load(key), job, rows, columns, GROUPED, 2, 16)
    tl.store(out + rows[:, None] * 16 + columns[None, :], found.to(tl.int32, bitcast=True))


def test_element_numbers_past_32_bits(device):
    stride = 2**35 + 8
    job = torch.zeros(len(FIELDS), dtype=torch.int64)
    job[FIELDS.index("e_row")], job[FIELDS.index("e_column")] = stride, 1
    job[FIELDS.index("columns")], key = 16, stream_key(1, "w") >> 1
    expected = np.stack([random_bits(key, row * stride, 16) for row in range(2)])
    for grouped in (True, False):
        out = torch.zeros((2, 16), dtype=torch.int32, device=device)
        words_kernel[(1,)](out, job.to(device), torch.tensor([key], device=device), GROUPED=grouped)
        np.testing.assert_array_equal(out.cpu().numpy().view(np.uint32), expected)


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize("shape", [(7, 13), (40, 72)], ids=str)
def test_equal_to_the_twin(shape, density, method, device):
    w, adapters = normal(shape, seed=1).to(device), whole(shape, (3, 4, 17), device=device)
    guarded = Guarded(shape, FP32, device, padding=5)
    recipe = {"weights": [1.0, 0.7, -2.0], "density": density, "keys": KEYS, "majority_sign_method": method}
    dare_merge(w, adapters, out=guarded.tensor, backend="triton", **recipe)
    guarded.check()
    assert torch.equal(guarded.tensor, dare_merge(w, adapters, backend="torch", **recipe))


@pytest.mark.parametrize("kinds", [(BF16, BF16, BF16), (FP16, BF16, FP32)], ids=str)
@pytest.mark.parametrize("layout", ["rows", "transposed", "stepped"])
def test_any_type_and_layout(kinds, layout, device):
    w_dtype, out_dtype, factor_dtype = kinds
    w = normal((40, 72), seed=1, dtype=w_dtype).to(device)
    adapters = whole((40, 72), (3, 8), dtype=factor_dtype, device=device)
    recipe = {
        "weights": [1, -0.5],
        "density": 0.3,
        "keys": KEYS[:2],
        "dtype": out_dtype,
        "majority_sign_method": "total",
    }
    got = dare_merge(laid_out(w, layout), adapters, backend="triton", **recipe)
    assert torch.equal(got, dare_merge(w, adapters, backend="torch", **recipe))


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("count", [1, 4])
def test_aligned_matrices_of_16_bits_equal_to_the_twin(count, method, device):
    w = normal((19, 40), seed=1, dtype=BF16).to(device)
    adapters = whole((19, 40), (3, 17, 16, 33)[:count], dtype=BF16, device=device)
    recipe = {"weights": [1.0, 0.7, -2.0, 0.3][:count], "density": 0.6, "keys": [*KEYS, 5][:count]}
    guarded = Guarded((19, 40), BF16, device, padding=8)
    dare_merge(w, adapters, out=guarded.tensor, majority_sign_method=method, backend="triton", **recipe)
    guarded.check()
    expected = dare_merge(w, adapters, majority_sign_method=method, backend="torch", **recipe)
    np.testing.assert_array_equal(bits(guarded.tensor), bits(expected))


def test_density_one_is_the_weighted_sum(device):
    w, adapters = normal((40, 20), seed=1).to(device), whole((40, 20), (3, 4), device=device)
    got = dare_merge(w, adapters, weights=[1, -2], density=1, keys=KEYS[:2], backend="triton")
    expected = w + (
        adapters[0].b @ adapters[0].a * adapters[0].scale - 2 * adapters[1].b @ adapters[1].a * adapters[1].scale
    )
    assert torch.equal(got, expected)


def test_a_kept_nan_shows_and_a_dropped_one_does_not(device):
    w, (adapter,) = torch.zeros(40, 72, device=device), whole((40, 72), (3,), device=device)
    adapter.a[2, 71] = torch.nan
    for method in FORMS:
        got = dare_merge(
            w, [adapter], weights=[1], density=0.5, keys=[7], majority_sign_method=method, backend="triton"
        ).cpu()
        kept = torch.from_numpy(keep_mask(7, 0, w.numel(), 0.5)).reshape(w.shape)
        kept[:, :71] = False
        assert torch.equal(got.isnan(), kept)


def test_adapters_of_rank_zero_keep_their_place(device):
    shape = (33, 20)
    w, (first, second) = normal(shape, seed=1).to(device), whole(shape, (3, 4), device=device)
    nothing = LowRank(w.new_zeros(33, 0), w.new_zeros(0, 20))
    got = dare_merge(w, [first, nothing, second], weights=[1, 5, -2], density=0.5, keys=KEYS, backend="triton")
    expected = dare_merge(w, [first, second], weights=[1, -2], density=0.5, keys=KEYS[::2], backend="triton")
    assert torch.equal(got, expected)


@pytest.mark.parametrize("keys", [[1], [1, 2**64], [-1, 2]])
def test_keys_that_do_not_fit_are_refused(keys):
    adapters = whole((3, 3), (1, 1), device=torch.device("cpu"))
    with pytest.raises(RegistryError, match="keys for 2 adapters; expected one 64-bit key each"):
        dare_merge(torch.zeros(3, 3), adapters, weights=[1, 1], density=0.5, keys=keys)
