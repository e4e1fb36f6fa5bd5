"""Divergence of merges from the unmerged adapter, in each dtype that a merge may be served in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from lora_contract.errors import RegistryError
from lora_contract.findings import Finding, Severity
from lora_contract.validation import LayerResult, Precision
from lora_kernels.merging import MergeReport, merge_folder
from lora_kernels.validating.losses import probe_logits
from lora_kernels.validating.models import compute_dtype, load_base, load_resident

if TYPE_CHECKING:
    from lora_kernels.devices.accelerator import Accelerator

Probes = Sequence[np.ndarray[Any, np.dtype[np.float64]]]

# Nats between merged and unmerged. In float32 only the order of sums differs; bfloat16 keeps eight bits of each weight
# (measurements: docs/validation.md).
EXACT: Final = 1e-6
ROUNDED: Final = 1e-2


class Form(NamedTuple):
    """A form of merge. bound: largest divergence in nats without a finding; None if the base's quantization differs as
    well, and the divergence is only reported."""

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
    # bfloat16 sums differ by more than the rounding of a merge to float32 or float16.
    "bfloat16": (Form("bfloat16", "bfloat16", "fp", ROUNDED), Form("nf4 base, bfloat16", "bfloat16", "nf4")),
    "nf4": (
        Form("nf4 base, float32", "float32", "nf4", ROUNDED),
        Form("nf4 base, bfloat16", "bfloat16", "nf4", ROUNDED),
        Form("bfloat16", "bfloat16", "fp"),
    ),
}


def divergence(one: Probes, other: Probes) -> float:
    """Mean of KL(one || other) over all tokens, in nats. one, other: log-probabilities."""
    nats = [(np.exp(a) * (a - b)).sum(axis=-1) for a, b in zip(one, other, strict=True)]
    return max(float(np.concatenate(nats).mean()), 0.0)


def top_agreement(one: Probes, other: Probes) -> float:
    """Share of tokens after which both predict the same next one."""
    equal = [a.argmax(axis=-1) == b.argmax(axis=-1) for a, b in zip(one, other, strict=True)]
    return float(np.concatenate(equal).mean())


def agreement(
    base: Path,
    adapter: Path,
    ids: Sequence[Sequence[int]],
    unmerged: Probes,
    progress: Callable[[str], None],
    *,
    precision: Precision = "float32",
    kind: type[Any] | None = None,
    accelerator: Accelerator | None = None,
) -> LayerResult:
    """Merge in each form and compare with the unmerged adapter. Types without a merged form pass.

    Args:
        precision: of the unmerged model.
        kind: class of the base's model.
        accelerator: a GPU, in whose memory merges stay; None to merge into a folder and load that.
    """
    findings: list[Finding] = []
    forms: dict[str, Any] = {}
    # A merge is dense: instead of NF4 it runs in NF4's compute dtype.
    loaded = compute_dtype(precision)
    for name, dtype, onto, bound, severity in FORMS[precision]:
        progress(name)
        try:
            if kind is not None and accelerator is not None:
                merged, report = _resident(base, adapter, ids, Loaded(kind, loaded, accelerator), dtype, onto)
            else:
                merged, report = _by_folder(base, adapter, ids, loaded, dtype, onto)
        except MergeRefused as refused:
            error = refused.error
            forms[name] = {"refused": error.detail}
            if error.code != "unsupported":
                findings.append(Finding("merge-refused", "warning", f"Merged to {name}: {error.detail}"))
            continue
        found = {"divergence": divergence(unmerged, merged), "top_agreement": top_agreement(unmerged, merged)}
        forms[name] = {**found, "kept": report.kept, "cosine": report.cosine}
        if bound is not None and not found["divergence"] <= bound:
            findings.append(
                Finding(
                    "merged-differs",
                    severity,
                    f"Merged to {name} it diverges by {found['divergence']:.1e} nats from the unmerged adapter; "
                    f"rounding explains at most {bound:.0e}.",
                )
            )
    return LayerResult(
        "failed" if any(f.severity == "error" for f in findings) else "passed", findings, {"forms": forms}
    )


class MergeRefused(Exception):
    """A merge that cannot be made. Other errors are those of loading its result."""

    def __init__(self, error: RegistryError) -> None:
        super().__init__(error.detail)
        self.error = error


class Loaded(NamedTuple):
    """Class, compute dtype and device of a merged model."""

    kind: type[Any]
    precision: Precision
    accelerator: Accelerator


def _by_folder(
    base: Path, adapter: Path, ids: Sequence[Sequence[int]], loaded: Precision, dtype: str, onto: str
) -> tuple[Probes, MergeReport]:
    with TemporaryDirectory(prefix="lora-reg-merged-") as folder:
        merged = Path(folder) / "merged"
        try:
            report = merge_folder(base, [(adapter, 1.0)], merged, dtype=dtype, onto=onto, min_kept=None)
        except RegistryError as error:
            raise MergeRefused(error) from error
        return probe_logits(load_base(merged, loaded), ids), report


def _resident(
    base: Path, adapter: Path, ids: Sequence[Sequence[int]], loaded: Loaded, dtype: str, onto: str
) -> tuple[Probes, MergeReport]:
    from lora_kernels.merging.device.resident import merge_resident

    try:
        merged = merge_resident(base, [(adapter, 1.0)], accelerator=loaded.accelerator, dtype=dtype, onto=onto)
    except RegistryError as error:
        raise MergeRefused(error) from error
    return probe_logits(load_resident(loaded.kind, merged, base, loaded.precision), ids), merged.report
