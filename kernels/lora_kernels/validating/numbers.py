"""The adapter's own numbers, module by module, beside the weights that it changes."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from lora_kernels.adapters import LowRankModule, open_adapter
from lora_kernels.linalg.factored import product_svd
from lora_kernels.merging.folder import read_base
from lora_kernels.merging.numerics import decode, storage
from lora_kernels.merging.sources import FolderSource
from lora_reg.spec.base import BaseTensor
from lora_reg.spec.errors import RegistryError
from lora_reg.spec.findings import Finding
from lora_reg.spec.validation import LayerResult

BLOCK: Final = 1 << 20
# Of the norm of the update to that of the weight: an update as large as the weight is no longer a change of it.
LARGE: Final = 1.0


def numbers(base: Path, adapter: Path) -> LayerResult:
    """For low-rank types, of each module: norm of the update, its share of the weight's norm, stable rank (squared
    Frobenius over squared spectral norm) and the share of pairs that add nothing. Other types have their values checked
    by the structure alone, and this says so."""
    try:
        rows = _rows(base, adapter)
    except RegistryError as error:
        if error.code != "unsupported":
            raise
        return LayerResult("passed", [Finding("not-low-rank", "note", error.detail)], {"modules": []})
    findings = [
        Finding(
            "update-large",
            "warning",
            f"The update of {row['module']} has {row['share']:.1f} times the norm of the weight itself; "
            f"expected less than {LARGE:g}.",
            where=row["module"],
            way_out="Look at the learning rate, and at alpha.",
        )
        for row in rows
        if row["share"] is not None and row["share"] > LARGE
    ]
    dead = [row["module"] for row in rows if row["norm"] == 0]
    if dead:
        more = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
        findings.append(
            Finding(
                "module-dead",
                "warning",
                f"{len(dead)} of {len(rows)} modules change nothing: {', '.join(dead[:3])}{more}.",
                where=dead[0],
                way_out="Where these were to be trained, train again; else leave them out of target_modules.",
            )
        )
    return LayerResult("passed", findings, {"modules": rows})


def _rows(base: Path, adapter: Path) -> list[dict[str, Any]]:
    fingerprint, _ = read_base(base)
    tensors = fingerprint.by_name()
    rows = []
    with open_adapter(adapter) as reader, FolderSource(base) as source:
        for name in reader.modules:
            module = reader.load(name)
            weight = tensors.get(f"{name}.weight")
            rows.append(_row(module, None if weight is None else _norm(source, weight)))
    return rows


def _row(module: LowRankModule, weight: float | None) -> dict[str, Any]:
    left, right = module.scale * module.b.astype(np.float64), module.a.astype(np.float64)
    if not module.rank:
        return {"module": module.module, "rank": 0, "norm": 0.0, "share": None, "stable_rank": 0.0, "dead_pairs": 0.0}
    singular = product_svd(left, right).singular
    norm = float(np.linalg.norm(singular))
    pairs = np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=1)
    dead = float((pairs <= 1e-6 * pairs.max()).mean()) if pairs.max() > 0 else 1.0
    return {
        "module": module.module,
        "rank": module.rank,
        "norm": _short(norm),
        "share": _short(norm / weight) if weight else None,
        "stable_rank": _short((norm / float(singular[0])) ** 2) if norm > 0 else 0.0,
        "dead_pairs": dead,
    }


def _norm(source: FolderSource, tensor: BaseTensor) -> float | None:
    """Frobenius norm of a tensor of the base, block by block; None for a quantized one."""
    try:
        kind = storage(tensor.dtype)
    except KeyError:
        return None
    total, step = 0.0, BLOCK * kind.itemsize
    for start in range(tensor.start, tensor.end, step):
        raw = bytearray(min(step, tensor.end - start))
        source.read_into(tensor.file, start, memoryview(raw))
        values = decode(np.frombuffer(raw, kind), tensor.dtype, np.empty(len(raw) // kind.itemsize, np.float32))
        total += float(np.dot(values, values))
    return math.sqrt(total)


_short = partial(round, ndigits=6)
