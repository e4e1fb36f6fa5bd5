"""The prediction that `auto` compares: it follows bytes, rank and method."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_contract.errors import RegistryError
from lora_kernels.merging import MergePlan, plan_folder
from lora_kernels.merging.device.cost import choose_device, estimate
from tests.kernels.checkpoints import pair, write_adapter
from tests.kernels.merging.test_folder import sparse_base

MODULES = ("mlp.up_proj", "self_attn.q_proj", "self_attn.v_proj")


def plan(folder: Path, *, rank: int = 16, **options: str) -> MergePlan:
    """Of 2 GB of weights, from headers alone: the files are sparse."""
    base, adapter = folder / "base", folder / f"adapter{rank}"
    if not base.exists():
        sparse_base(base, layers=1, hidden=16384, rows=16384)
    if not adapter.exists():
        factors = {}
        for layer in range(1):
            for module in MODULES:
                factors |= pair(f"model.layers.{layer}.{module}", out=16384, in_=16384, r=rank, seed=1, dtype="BF16")
        write_adapter(adapter, factors, r=rank)
    return plan_folder(base, [(adapter, 1.0)], **options)


def test_a_plain_merge_stays_on_the_cpu_and_quantizing_goes_to_the_gpu(tmp_path: Path) -> None:
    plain = estimate(plan(tmp_path), digests=False, threads=2)
    assert plain.cuda is not None and plain.cuda > plain.cpu
    assert plain.what == "1.6 GB written, 1.6 GB of them computed, rank 16, sums of low-rank products"
    quantized = estimate(plan(tmp_path, onto="nf4"), digests=False, threads=1)
    assert quantized.cuda is not None and quantized.cuda < 0.8 * quantized.cpu
    assert quantized.what.endswith("onto NF4")


def test_rank_digests_and_threads_count(tmp_path: Path) -> None:
    narrow, wide = (estimate(plan(tmp_path, rank=rank), digests=False, threads=2) for rank in (16, 64))
    assert wide.cpu > narrow.cpu and wide.cuda == narrow.cuda
    hashed = estimate(plan(tmp_path), digests=True, threads=2)
    assert hashed.cpu > narrow.cpu
    assert estimate(plan(tmp_path, rank=64), digests=False, threads=8).cpu < wide.cpu


def test_what_the_gpu_does_not_compute_is_not_sent_there(tmp_path: Path) -> None:
    options = {"dtype": "bfloat16", "rounding": "stochastic"}
    assert estimate(plan(tmp_path, **options), digests=False, threads=2).cuda is None
    with pytest.raises(RegistryError, match=r"LORA, stochastic rounding\) has a kernel") as caught:
        choose_device(plan(tmp_path, **options), "cuda")
    assert caught.value.code == "unsupported" and "--device cpu" in (caught.value.hint or "")
