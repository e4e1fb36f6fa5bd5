"""Resizing of adapters: the best approximation of each module's update at another rank, from the SVD of its factors."""

from __future__ import annotations

import math
import os
from contextlib import closing

from lora_contract.devices import Device
from lora_kernels.adapters.low_rank import LowRankModule
from lora_kernels.adapters.size import Size, stored_dtype
from lora_kernels.checkpoint.records import Progress
from lora_kernels.devices.choice import choose_cpu
from lora_kernels.linalg.factored import balanced, product_norm, product_svd, rank_for_energy
from lora_kernels.resizing.report import ResizedModule, ResizeReport
from lora_kernels.resizing.rewrite import Rewrite, relative_error, rewriting, wide


def resize_folder(
    adapter_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    rank: int | None = None,
    keep_energy: float | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    device: Device = "cpu",
) -> ResizeReport:
    """Write the adapter folder `out_dir`, which appears complete or not at all: plain LoRA with alpha = r.

    Args:
        rank: of the modules that have a larger one; others keep their factors, since a larger rank adds nothing.
        keep_energy: instead of `rank`: the smallest rank of each module that keeps this share of its squared norm.
        dtype: `float32`, `bfloat16` or `float16`; None for the adapter's own.
        threads: modules processed at a time, None for one per processor; the bytes do not depend on it.
        progress: called with modules done and modules in total.
        device: `cpu`, or `auto`, which takes it: factors are thin, and a GPU would wait for them.

    Raises RegistryError as `open_adapter`, `Size` and `adapter_writer` do, `rejected` if values are not finite, before
    or after rounding, and `unsupported` for the device `cuda`.
    """
    size = Size(rank, keep_energy)
    execution = choose_cpu(device, "a resize decomposes factors alone")
    modules: list[ResizedModule] = []
    dropped: list[str] = []
    with rewriting(adapter_dir, out_dir, stored_dtype(dtype) if dtype is not None else None) as rewrite:
        with closing(rewrite.each(lambda path: _module(rewrite, path, size), threads, progress)) as outcomes:
            for factors, row in outcomes:
                if factors is None:
                    dropped.append(row.module)
                else:
                    rewrite.writer.add(factors)
                    modules.append(row)
        extras = rewrite.copy_extras()
    energy = math.fsum(module.update_norm**2 for module in modules)
    lost = math.fsum((module.update_norm * module.relative_error) ** 2 for module in modules)
    return ResizeReport(
        rank=max(module.rank for module in modules),
        kept_energy=1 - lost / energy,
        relative_error=math.sqrt(lost / energy),
        modules=tuple(modules),
        dropped=tuple(dropped),
        extras=extras,
        files=rewrite.writer.files,
        execution=execution,
    )


def _module(rewrite: Rewrite, path: str, size: Size) -> tuple[LowRankModule | None, ResizedModule]:
    """The factors are None if the update is zero."""
    module = rewrite.reader.load(path)
    b, a = wide(module)
    norm = product_norm(b, a) if module.rank else 0.0
    if norm == 0:
        return None, ResizedModule(path, module.rank, 0, 0.0, 1.0, 0.0)
    new_b, new_a = b, a
    if size.rank is None or size.rank < module.rank:
        triplets = product_svd(b, a)
        wanted = rank_for_energy(triplets.singular, size.keep_energy or 1.0) if size.rank is None else size.rank
        if wanted < module.rank:
            new_b, new_a = balanced(triplets, wanted)
    factors = rewrite.factors(module, new_b, new_a)
    error = relative_error((b, a), factors)
    return factors, ResizedModule(path, module.rank, factors.rank, norm, 1 - error**2, error)
