"""Whether the adapter has an effect, whether all of its tensors do, and whether each module improves the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from lora_contract.findings import Finding
from lora_contract.tensors import Header
from lora_contract.validation import LayerResult
from lora_kernels.validating import contribution
from lora_kernels.validating.agreement import divergence, top_agreement
from lora_kernels.validating.losses import Encoded
from lora_kernels.validating.module_ablation import measure

WEIGHTS: Final = "adapter_model.safetensors"
# PEFT stores the base's weights of an adapted embedding beside its factors. They have no effect.
_COPY: Final = ".base_layer."
# Nats. The weakest of the test bed's adapters changes the probes by 0.1.
WEAK: Final = 1e-6

Probes = list[np.ndarray[Any, np.dtype[np.float64]]]


def effect(
    model: Any,
    header: Header,
    before: Probes,
    after: Probes,
    records: Sequence[tuple[Encoded, float | None]] = (),
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> LayerResult:
    """Compare the model with and without the adapter.

    Args:
        model: of PEFT.
        header: of the adapter's file.
        before, after: log-probabilities of the probes.
        records: of the task evaluation sets, each with its nats on the base.
        progress: called with passes done and passes in total.
    """
    findings = _coverage(model, header)
    finite = all(np.isfinite(probe).all() for probe in after)
    facts: dict[str, Any] = {"keys": len(header.tensors), "finite": finite}
    if not finite:
        findings.append(Finding("not-finite", "error", "With the adapter the model's outputs are NaN or infinite."))
    else:
        change = max(float(np.abs(a - b).max()) for a, b in zip(after, before, strict=True))
        facts |= {
            "largest_change": change,
            "divergence": divergence(before, after),
            "top_agreement": top_agreement(before, after),
        }
        if change == 0:
            findings.append(Finding("no-effect", "error", "With the adapter the outputs equal the base's."))
        elif facts["divergence"] < WEAK:
            findings.append(
                Finding(
                    "weak-effect", "warning", f"The outputs differ from the base's by {facts['divergence']:.1e} nats."
                )
            )
        if (contributions := measure(model, records, progress)) is not None:
            facts["pulls"] = contribution.facts(contributions)
            findings += contribution.findings(contributions)
    return LayerResult("failed" if any(f.severity == "error" for f in findings) else "passed", findings, facts)


def _coverage(model: Any, header: Header) -> list[Finding]:
    """Report keys of the file without a parameter in PEFT, and parameters without a key. PEFT ignores both."""
    from peft import get_peft_model_state_dict

    parameters = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    stored = {tensor.name for tensor in header.tensors if _COPY not in tensor.name}
    findings = [
        Finding("key-without-effect", "error", f"PEFT has no parameter for {name}: it has no effect.", WEIGHTS, name)
        for name in sorted(stored - parameters)
    ]
    return findings + [
        Finding("key-missing", "error", f"The file lacks {name}: PEFT initialized it randomly.", WEIGHTS, name)
        for name in sorted(parameters - stored)
    ]
