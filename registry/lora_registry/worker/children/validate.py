"""The heavy half of `validate`: everything is fetched into a working folder, each file checked against its digest, and
loaded from there with the libraries that users of the adapter have."""

from __future__ import annotations

from typing import Any

import msgspec

from lora_contract.dataset import FILE
from lora_registry.processes.child import Report
from lora_registry.settings import load
from lora_registry.worker import scratch
from lora_registry.worker.children import sources


def measure(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """A `Validation` as JSON values. Raises RegistryError `corrupt` where stored bytes differ from their digest."""
    from lora_kernels.validating import EvaluationSet, Subject, validate

    blobs = sources.blobs()
    with scratch.folder(load().data) as folder:
        sources.fetch(blobs, spec["base_files"], folder / "base")
        sources.fetch(blobs, spec["adapter_files"], folder / "adapter")
        sets = []
        for number, given in enumerate(spec["sets"]):
            sources.fetch(blobs, given["files"], folder / f"set-{number}")
            sets.append(EvaluationSet(given["role"], given["digest"], given["name"], folder / f"set-{number}" / FILE))

        def told(what: str, done: int, total: int) -> None:
            report.progress(what, done=done, total=total, unit="records" if total > 1 else "")

        subject = Subject(
            folder / "base",
            folder / "adapter",
            spec["version"],
            spec["base"],
            tuple(sets),
            precision=spec["precision"],
        )
        found: dict[str, Any] = msgspec.to_builtins(validate(subject, progress=told))
        return found
