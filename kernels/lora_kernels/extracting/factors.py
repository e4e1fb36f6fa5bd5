"""The factors of one module's change: decomposed, rounded to the stored dtype, and measured after rounding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lora_contract.modules import BaseModule
from lora_kernels.adapters.low_rank import LowRankKind, LowRankModule
from lora_kernels.adapters.rounding import stored_values
from lora_kernels.adapters.size import Size
from lora_kernels.extracting.change import ChangeNorms, WeightChange
from lora_kernels.extracting.report import ExtractedModule
from lora_kernels.linalg.operators import Operator
from lora_kernels.linalg.randomized import leading_triplets, residual


class Extracted(NamedTuple):
    """factors: of scale 1, rounded to the stored dtype."""

    factors: LowRankModule
    row: ExtractedModule


def extract_module(
    change: WeightChange,
    operator: Operator,
    norms: ChangeNorms,
    module: BaseModule,
    path: str,
    *,
    size: Size,
    seed: int,
    dtype: str,
) -> Extracted:
    """Decompose the change of a module. operator: of the change. path: in the running model. dtype: stored dtype, such
    as BF16."""
    name = change.pair.name
    found = leading_triplets(
        operator, name=name, rank=size.rank, keep_energy=size.keep_energy, max_rank=size.max_rank, seed=seed
    )
    root = np.sqrt(found.singular)
    left, right = stored_values(found.left * root, dtype), stored_values(root[:, None] * found.right, dtype)
    rest = residual(operator, left, right)
    kind: LowRankKind = "embedding" if module.kind == "embedding" else "conv" if module.kind == "conv" else "linear"
    # Embeddings add (B A)^T, and so do layers stored (in, out).
    a, b = (left.T, right.T) if kind == "embedding" or module.transposed else (right, left)
    inputs = change.pair.base.shape[1:] if kind == "conv" else None
    row = ExtractedModule(
        module=path,
        tensor=name,
        rank=len(root),
        kept_energy=1 - (rest / norms.change) ** 2,
        change_norm=norms.change,
        residual_norm=rest,
        relative_change=norms.relative,
        exact=found.exact,
    )
    return Extracted(LowRankModule(path, kind, a, b, inputs=inputs), row)
