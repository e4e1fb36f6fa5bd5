"""Merged against unmerged: how far a merge is from the adapter, in each dtype that it could be served in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np

from lora_contract.errors import RegistryError
from lora_contract.findings import Finding, Severity
from lora_contract.validation import LayerResult, Precision
from lora_kernels.merging import merge_folder
from lora_kernels.validating.losses import probe_logits
from lora_kernels.validating.models import computed_in, load_base

Probes = Sequence[np.ndarray[Any, np.dtype[np.float64]]]

# Nats between merged and unmerged. In float32 both are the same numbers in another order of sums; bfloat16 keeps eight
# bits of each weight (docs/validation.md has what was measured).
EXACT: Final = 1e-6
ROUNDED: Final = 1e-2


class Form(NamedTuple):
    """A way to merge. bound: divergence in nats above which there is a finding; None if the base's quantization differs
    as well, which is reported only."""

    name: str
    dtype: str
    onto: str
    bound: float | None = None
    severity: Severity = "warning"


FORMS: Final[dict[Precision, tuple[Form, ...]]] = {
    "float32": (
        Form("float32", "float32", "fp", EXACT, "error"),
        Form("bfloat16", "bfloat16", "fp", ROUNDED),
        Form("float16", "float16", "fp", ROUNDED),
        Form("nf4 base, bfloat16", "bfloat16", "nf4"),
    ),
    # Sums in bfloat16 differ by more than a merge to float32 or float16 does.
    "bfloat16": (Form("bfloat16", "bfloat16", "fp", ROUNDED), Form("nf4 base, bfloat16", "bfloat16", "nf4")),
    "nf4": (
        Form("nf4 base, float32", "float32", "nf4", ROUNDED),
        Form("nf4 base, bfloat16", "bfloat16", "nf4", ROUNDED),
        Form("bfloat16", "bfloat16", "fp"),
    ),
}


def divergence(one: Probes, other: Probes) -> float:
    """Mean over all tokens of KL(one || other), in nats, of log-probabilities."""
    parts = [(np.exp(a) * (a - b)).sum(axis=-1) for a, b in zip(one, other, strict=True)]
    return max(float(np.concatenate(parts).mean()), 0.0)


def top_agreement(one: Probes, other: Probes) -> float:
    """Share of tokens after which both expect the same next one."""
    parts = [a.argmax(axis=-1) == b.argmax(axis=-1) for a, b in zip(one, other, strict=True)]
    return float(np.concatenate(parts).mean())


def agreement(
    base: Path,
    adapter: Path,
    ids: Sequence[Sequence[int]],
    unmerged: Probes,
    progress: Callable[[str], None],
    *,
    precision: Precision = "float32",
) -> LayerResult:
    """Merge in each form and compare with the unmerged adapter. Types that have no merged form pass.
    precision: of the unmerged model."""
    findings: list[Finding] = []
    forms: dict[str, Any] = {}
    # A merge is dense: in place of NF4 it runs in NF4's compute dtype.
    loaded = computed_in(precision)
    for name, dtype, onto, bound, severity in FORMS[precision]:
        progress(name)
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
            merged = probe_logits(load_base(Path(folder) / "merged", loaded), ids)
        found = {"divergence": divergence(unmerged, merged), "top_agreement": top_agreement(unmerged, merged)}
        forms[name] = {**found, "kept": report.kept, "cosine": report.cosine}
        if bound is not None and not found["divergence"] <= bound:
            findings.append(
                Finding(
                    "merged-differs",
                    severity,
                    f"Merged to {name} it is {found['divergence']:.1e} nats from what it is unmerged; "
                    f"at most {bound:.0e} is rounding.",
                )
            )
    return LayerResult(
        "failed" if any(f.severity == "error" for f in findings) else "passed", findings, {"forms": forms}
    )
