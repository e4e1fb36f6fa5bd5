"""The reading half of `diff`."""

from __future__ import annotations

from typing import Any

import msgspec

from lora_registry.processes.child import Report
from lora_registry.settings import load
from lora_registry.worker import scratch
from lora_registry.worker.children import sources


def compare(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """A `Comparison` as JSON values. Raises RegistryError `unsupported`, `conflict`."""
    from lora_kernels.comparing import compare_folders

    blobs = sources.blobs()
    with scratch.folder(load().data) as folder:
        for name in ("before", "after"):
            sources.fetch(blobs, spec[name], folder / name)
        made = compare_folders(
            folder / "before",
            folder / "after",
            lambda done, total: report.progress("compare", done=done, total=total, unit="modules"),
        )
        found: dict[str, Any] = msgspec.to_builtins(made)
        return found
