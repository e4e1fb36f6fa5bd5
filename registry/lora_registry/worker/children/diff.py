"""The child of `diff`: compare two adapters."""

from __future__ import annotations

import msgspec

from lora_kernels.comparing import Comparison, compare_folders
from lora_registry.processes.child import ChildReporter
from lora_registry.settings import load
from lora_registry.worker import scratch
from lora_registry.worker.children import files


class DiffInput(msgspec.Struct, frozen=True):
    """other: digest of the version that the files of `before` belong to."""

    before: files.Files
    after: files.Files
    other: str


def compare(data: DiffInput, reporter: ChildReporter) -> Comparison:
    """Compare two adapters. Raises RegistryError `unsupported`, `conflict`."""
    blobs = files.blobs()
    with scratch.folder(load().data) as folder:
        files.fetch(blobs, data.before, folder / "before")
        files.fetch(blobs, data.after, folder / "after")
        return compare_folders(
            folder / "before",
            folder / "after",
            lambda done, total: reporter.progress("compare", done=done, total=total, unit="modules"),
        )
