"""Conversion of low-rank adapters to plain LoRA with the same product: alpha = r, no rsLoRA, scale 1 everywhere."""

from __future__ import annotations

import os
from contextlib import closing

import numpy as np

from lora_kernels.adapters.low_rank import LowRankModule
from lora_kernels.adapters.size import stored_dtype
from lora_kernels.resizing.report import ConvertedModule, ConvertReport
from lora_kernels.resizing.rewrite import Rewrite, relative_error, rewriting, wide


def convert_folder(
    adapter_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    uniform_rank: bool = False,
    dtype: str | None = None,
) -> ConvertReport:
    """Write the adapter folder `out_dir`, which appears complete or not at all.

    Each module's scale is folded into its B: exactly if it is a power of two, else with one rounding to the stored
    dtype. uniform_rank: pad all factors with zeros to the largest rank, for engines that ignore rank_pattern. dtype:
    see `resize_folder`. Raises RegistryError as `open_adapter` and `adapter_writer` do, with a hint if the factors are
    not an update of the base (PiSSA and the like), and `rejected` if a value is not finite.
    """
    modules: list[ConvertedModule] = []
    with rewriting(adapter_dir, out_dir, stored_dtype(dtype) if dtype is not None else None) as rewrite:
        ranks = {path: rewrite.reader.shape(path).rank for path in rewrite.reader.modules}
        uniform = max(ranks.values(), default=0) if uniform_rank else 0
        with closing(rewrite.each(lambda path: _module(rewrite, path, uniform), None, None)) as outcomes:
            for factors, row in outcomes:
                if factors.rank:
                    rewrite.writer.add(factors)
                    modules.append(row)
        extras = rewrite.copy_extras()
    return ConvertReport(
        rank=max(rewrite.writer.ranks.values()),
        exact=all(module.relative_error == 0 for module in modules),
        relative_error=max(module.relative_error for module in modules),
        modules=tuple(modules),
        dropped=tuple(path for path, rank in ranks.items() if not rank),
        extras=extras,
        files=rewrite.writer.files,
    )


def _module(rewrite: Rewrite, path: str, uniform: int) -> tuple[LowRankModule, ConvertedModule]:
    module = rewrite.reader.load(path)
    b, a = wide(module)
    factors = rewrite.factors(module, b, a)
    row = ConvertedModule(path, module.rank, module.scale, relative_error((b, a), factors) if module.rank else 0.0)
    missing = max(uniform - module.rank, 0) if module.rank else 0
    padded = np.pad(factors.a, ((0, missing), (0, 0))), np.pad(factors.b, ((0, 0), (0, missing)))
    return LowRankModule(path, module.kind, *padded, inputs=module.inputs), row
