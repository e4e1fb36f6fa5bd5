"""Merged against unmerged: what a merge makes of the adapter, in each type that it could be served in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from lora_kernels.merging import merge_folder
from lora_kernels.validating.losses import probe_logits
from lora_kernels.validating.models import load_base
from lora_reg.spec.errors import RegistryError
from lora_reg.spec.findings import Finding
from lora_reg.spec.validation import LayerResult

Probes = Sequence[np.ndarray[Any, np.dtype[np.float64]]]

# (name, dtype, onto). What is merged onto NF4 differs by the quantization of the base as well, and is only told.
FORMS: Final = (
    ("float32", "float32", "fp"),
    ("bfloat16", "bfloat16", "fp"),
    ("float16", "float16", "fp"),
    ("nf4 base, bfloat16", "bfloat16", "nf4"),
)
# Nats between merged and unmerged. In float32 both are the same numbers in another order of sums; bfloat16 keeps eight
# bits of each weight (docs/validation.md has what was measured).
EXACT: Final = 1e-6
ROUNDED: Final = 1e-2


def divergence(one: Probes, other: Probes) -> float:
    """Mean over all tokens of KL(one || other), in nats, of log-probabilities."""
    parts = [(np.exp(a) * (a - b)).sum(axis=-1) for a, b in zip(one, other, strict=True)]
    return max(float(np.concatenate(parts).mean()), 0.0)


def top_agreement(one: Probes, other: Probes) -> float:
    """Share of tokens after which both expect the same next one."""
    parts = [a.argmax(axis=-1) == b.argmax(axis=-1) for a, b in zip(one, other, strict=True)]
    return float(np.concatenate(parts).mean())


def agreement(
    base: Path, adapter: Path, ids: Sequence[Sequence[int]], unmerged: Probes, told: Callable[[str], None]
) -> LayerResult:
    """Merge in each form, and compare with what the adapter does unmerged. Types that have no merged form pass."""
    findings: list[Finding] = []
    forms: dict[str, Any] = {}
    for name, dtype, onto in FORMS:
        told(name)
        with TemporaryDirectory(prefix="lora-reg-merged-") as folder:
            try:
                report = merge_folder(
                    base, [(adapter, 1.0)], Path(folder) / "merged", dtype=dtype, onto=onto, min_kept=None
                )
            except RegistryError as error:
                forms[name] = {"refused": error.detail}
                if error.code != "unsupported":
                    findings.append(Finding("merge-refused", "warning", f"Merged to {name}: {error.detail}"))
                continue
            merged = probe_logits(load_base(Path(folder) / "merged"), ids)
        found = {"divergence": divergence(unmerged, merged), "top_agreement": top_agreement(unmerged, merged)}
        forms[name] = {**found, "kept": report.kept, "cosine": report.cosine}
        bound = {"float32": EXACT, "bfloat16": ROUNDED, "float16": ROUNDED}.get(name)
        if bound is not None and not found["divergence"] <= bound:
            findings.append(
                Finding(
                    "merged-differs",
                    "error" if name == "float32" else "warning",
                    f"Merged to {name} it is {found['divergence']:.1e} nats from what it is unmerged; "
                    f"at most {bound:.0e} is rounding.",
                )
            )
    return LayerResult(
        "failed" if any(f.severity == "error" for f in findings) else "passed", findings, {"forms": forms}
    )
