"""The merge of low-rank updates: kernel against float64, never worse than plain torch, whatever the shape and layout."""

from __future__ import annotations

import pytest
import torch

from lora_kernels.ops import LowRank, merge_low_rank
from lora_kernels.ops.merge_low_rank import reference
from lora_kernels.ops.testing import Guarded, assert_close

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SHAPES = [(1, 1), (7, 13), (63, 65), (64, 128), (130, 72), (257, 3)]


def normal(*shape: int, seed: int, dtype: torch.dtype = FP32, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def lora(shape: tuple[int, int], rank: int, *, seed: int, dtype: torch.dtype, device: torch.device) -> LowRank:
    b = normal(shape[0], rank, seed=seed, dtype=dtype, scale=0.3).to(device)
    a = normal(rank, shape[1], seed=seed + 1, dtype=dtype, scale=0.3).to(device)
    return LowRank(b, a, scale=0.75 * (-1) ** seed)


def exact(w: torch.Tensor, adapters: list[LowRank]) -> torch.Tensor:
    out = torch.empty(w.shape, dtype=torch.float64, device=w.device)
    reference.merge([(w, adapters, out)], stats=False, compute=torch.float64)
    return out


def twin(w: torch.Tensor, adapters: list[LowRank], dtype: torch.dtype) -> torch.Tensor:
    return merge_low_rank(w, adapters, dtype=dtype, backend="torch").weight


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "kinds", [(BF16, BF16, BF16), (FP32, FP32, FP32), (FP16, FP16, FP32), (BF16, FP32, FP16)], ids=str
)
def test_close_to_float64_as_torch_is(shape, kinds, device):
    w_dtype, out_dtype, factor_dtype = kinds
    w = normal(*shape, seed=1, dtype=w_dtype).to(device)
    adapters = [lora(shape, rank, seed=rank, dtype=factor_dtype, device=device) for rank in (16, 3, 40)]
    guarded = Guarded(shape, out_dtype, device, padding=5)
    merge_low_rank(w, adapters, out=guarded.tensor, backend="triton")
    guarded.check()
    # The order of summation along the rank differs from torch's: a factor of two on its largest error.
    assert_close(guarded.tensor, exact(w, adapters), as_torch=twin(w, adapters, out_dtype), factor=2.0)


def test_bf16_is_the_correct_rounding_but_for_one_element_in_ten_thousand(device):
    from tests.support.oracle import round_bf16

    w = normal(256, 256, seed=1, dtype=BF16).to(device)
    adapters = [lora((256, 256), rank, seed=rank, dtype=BF16, device=device) for rank in (16, 8)]
    got = merge_low_rank(w, adapters, backend="triton").weight.cpu().view(torch.uint16).numpy()
    assert (got != round_bf16(exact(w, adapters).cpu().numpy())).sum() <= got.size // 10_000
