"""The child of `validate`: fetch all files into a scratch folder, verifying digests, and load them with the libraries
that users of the adapter have."""

from __future__ import annotations

import msgspec

from lora_contract.dataset import FILE
from lora_contract.validation import DatasetRole, Precision, Validation
from lora_registry.processes.child import ChildReporter
from lora_registry.settings import load
from lora_registry.worker import scratch
from lora_registry.worker.children import files


class EvaluationSetInput(msgspec.Struct, frozen=True):
    """name: the set as named in the request. digest: of its version."""

    role: DatasetRole
    digest: str
    name: str
    files: files.Files


class ValidateInput(msgspec.Struct, frozen=True):
    """version, base: digests of the adapter's version and of its base version."""

    version: str
    base: str
    precision: Precision
    adapter_files: files.Files
    base_files: files.Files
    sets: tuple[EvaluationSetInput, ...]


def measure(data: ValidateInput, reporter: ChildReporter) -> Validation:
    """Validate an adapter. Raises RegistryError `corrupt` if stored bytes differ from their digest."""
    from lora_kernels.validating import EvaluationSet, Subject, validate

    blobs = files.blobs()
    with scratch.folder(load().data) as folder:
        files.fetch(blobs, data.base_files, folder / "base")
        files.fetch(blobs, data.adapter_files, folder / "adapter")
        sets = []
        for number, each in enumerate(data.sets):
            files.fetch(blobs, each.files, folder / f"set-{number}")
            sets.append(EvaluationSet(each.role, each.digest, each.name, folder / f"set-{number}" / FILE))

        def progress(step: str, done: int, total: int) -> None:
            reporter.progress(step, done=done, total=total, unit="records" if total > 1 else "")

        subject = Subject(
            folder / "base",
            folder / "adapter",
            data.version,
            data.base,
            tuple(sets),
            precision=data.precision,
        )
        return validate(subject, progress=progress)
