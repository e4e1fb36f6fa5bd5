"""DARE as a launch of `sparse`, whose kernels draw the masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kernels.numeric.philox import keep_limit
from lora_kernels.ops import aot
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.single import single
from lora_kernels.ops.sparse import MajoritySign, aligned
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
    chosen = [adapters[index] for index in present]
    recipe: dict[str, Any] = {
        "weights": [weights[index] / density for index in present],
        "limits": torch.full((len(present),), keep_limit(density), device=w.device),
        "keys": [keys[index] for index in present],
        "method": method,
    }
    # The numbers of four elements in a row share a counter: rows stay rows.
    laid_out = single(w, out, chosen, most=aligned.MOST_ADAPTERS, transpose=False)
    if laid_out is not None:
        aligned.merge(laid_out, **recipe)
    else:
        sparse.merge(w, chosen, out, **recipe)


def variants() -> list[aot.Variant]:
    return aligned.variants(random=True) + sparse.variants(random=True)
