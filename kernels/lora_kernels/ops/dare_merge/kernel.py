"""DARE as a launch of `sparse`, whose kernel draws the masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.numeric.philox import keep_limit
from lora_kernels.ops import aot
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.sparse import MajoritySign
from lora_kernels.ops.sparse import kernel as sparse


def merge(
    w: torch.Tensor,
    adapters: Sequence[LowRank],
    out: torch.Tensor,
    *,
    weights: Sequence[float],
    density: float,
    keys: Sequence[int],
    method: MajoritySign | None,
) -> None:
    """Merge checked arguments into `out`."""
    present = [index for index, adapter in enumerate(adapters) if adapter.rank]
    sparse.merge(
        w,
        [adapters[index] for index in present],
        out,
        weights=[weights[index] / density for index in present],
        limits=torch.full((len(present),), keep_limit(density), device=w.device),
        keys=[keys[index] for index in present],
        method=method,
    )


def variants() -> list[aot.Variant]:
    return sparse.variants(random=True)
