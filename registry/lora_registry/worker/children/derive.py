"""The child of operations whose result is an adapter: compose, resize, convert, extract.

Adapters are small: they are fetched into a scratch folder. Checkpoints are streamed from the blob store. The result is
written to the scratch folder and stored from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lora_contract.base import BaseFingerprint
from lora_contract.errors import RegistryError
from lora_contract.fingerprint import build_fingerprint
from lora_contract.recipe import (
    ComposeRecipe,
    ConvertRecipe,
    ExtractRecipe,
    MergeRecipe,
    Recipe,
    ResizeBaseRecipe,
    ResizeRecipe,
)
from lora_registry.blobs.keys import new_life
from lora_registry.blobs.protocols import JobStore
from lora_registry.processes.child import ChildReporter
from lora_registry.runtime.faults import fault_point
from lora_registry.settings import load
from lora_registry.worker import scratch
from lora_registry.worker.children import files

CHUNK = 256 * 1024


class DeriveInput(msgspec.Struct, frozen=True):
    """A recipe with the files of the versions it names. inputs: in the recipe's order."""

    recipe: Recipe
    base: files.Files
    inputs: tuple[files.Files, ...]


class DerivedFiles(msgspec.Struct, frozen=True):
    """The files of the result, and the kernel's report on it as JSON."""

    files: tuple[files.ResultFile, ...]
    report: str


def report_body(report: msgspec.Struct) -> str:
    """Encode a kernel's report for storage."""
    return json.dumps(msgspec.to_builtins(report), sort_keys=True)


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """A child's scratch folder. inputs: one folder per input adapter. result: output folder of the kernels."""

    blobs: JobStore
    reporter: ChildReporter
    inputs: list[Path]
    result: Path

    def progress(self, message: str, unit: str) -> Callable[[int, int], None]:
        """Return a callback for kernels, called with (done, total) from any thread."""

        def report(done: int, total: int) -> None:
            fault_point(f"{message}.progress")
            self.reporter.progress(message, done=done, total=total, unit=unit)

        return report

    def store_result(self, report: msgspec.Struct) -> DerivedFiles:
        """Store the files of the result. report: of the kernel."""
        stored = []
        for path in sorted(path for path in self.result.rglob("*") if path.is_file()):
            fault_point("derive.store")
            where, size = self.blobs.put_unknown(_chunks(path), life=new_life())
            stored.append(files.ResultFile.made(path.relative_to(self.result).as_posix(), size, where))
        return DerivedFiles(tuple(stored), report_body(report))


def derive(data: DeriveInput, reporter: ChildReporter) -> DerivedFiles:
    """Compute the adapter of any recipe whose result is one. Raises the kernels' RegistryErrors."""
    match data.recipe:
        case ComposeRecipe() as recipe:
            return _compose(recipe, data, reporter)
        case ResizeRecipe() as recipe:
            return _resize(recipe, data, reporter)
        case ConvertRecipe() as recipe:
            return _convert(recipe, data, reporter)
        case ExtractRecipe() as recipe:
            return _extract(recipe, data, reporter)
        case MergeRecipe() | ResizeBaseRecipe() as recipe:
            raise RegistryError("internal", f"A recipe of {recipe.operation} does not derive an adapter.")


@contextmanager
def _working(inputs: tuple[files.Files, ...], reporter: ChildReporter) -> Iterator[WorkFolder]:
    """Fetch the input adapters, verifying each file's digest; remove the folder at the end."""
    blobs = files.blobs()
    with scratch.folder(load().data) as folder:
        folders = []
        for number, adapter in enumerate(inputs):
            folders.append(folder / f"input-{number}")
            files.fetch(blobs, adapter, folders[-1])
        fault_point("derive.fetched")
        yield WorkFolder(blobs, reporter, folders, folder / "result")


def _compose(recipe: ComposeRecipe, data: DeriveInput, reporter: ChildReporter) -> DerivedFiles:
    from lora_kernels.composing import compose_folders

    with _working(data.inputs, reporter) as work:
        made = compose_folders(
            [(folder, item.weight) for folder, item in zip(work.inputs, recipe.inputs, strict=True)],
            work.result,
            method=recipe.method,
            parameters=recipe.parameters,
            seed=recipe.seed,
            dtype=recipe.dtype,
            device=recipe.device,
            progress=work.progress("compose", "modules"),
        )
        return work.store_result(made)


def _resize(recipe: ResizeRecipe, data: DeriveInput, reporter: ChildReporter) -> DerivedFiles:
    from lora_kernels.resizing import resize_folder

    with _working(data.inputs, reporter) as work:
        made = resize_folder(
            work.inputs[0],
            work.result,
            rank=recipe.rank,
            keep_energy=recipe.keep_energy,
            dtype=recipe.dtype,
            progress=work.progress("resize", "modules"),
        )
        return work.store_result(made)


def _convert(recipe: ConvertRecipe, data: DeriveInput, reporter: ChildReporter) -> DerivedFiles:
    from lora_kernels.resizing import convert_folder

    with _working(data.inputs, reporter) as work:
        made = convert_folder(work.inputs[0], work.result, uniform_rank=recipe.uniform_rank, dtype=recipe.dtype)
        return work.store_result(made)


def _extract(recipe: ExtractRecipe, data: DeriveInput, reporter: ChildReporter) -> DerivedFiles:
    """Raise RegistryError if the checkpoints are not of the same model."""
    from lora_kernels.extracting import extract as run

    blobs = files.blobs()
    tuned, base = data.inputs[0], data.base
    verification = files.Verification(blobs, tuned, base)
    with files.blaming_the_store(blobs, tuned, base), _working((), reporter) as work:
        made = run(
            _fingerprint(blobs, tuned),
            files.ThreadSource(blobs, tuned),
            _fingerprint(blobs, base),
            files.ThreadSource(blobs, base),
            work.result,
            rank=recipe.rank,
            keep_energy=recipe.keep_energy,
            max_rank=recipe.max_rank,
            targets=recipe.targets,
            save_changed=recipe.save_changed,
            seed=recipe.seed,
            dtype=recipe.dtype,
            base_name=recipe.base_name,
            device=recipe.device,
            progress=work.progress("extract", "bytes"),
        )
        verification.finish()
        return work.store_result(made)


def _fingerprint(blobs: JobStore, stored: files.Files) -> BaseFingerprint:
    known = {path: (file.size, file.digest) for path, file in stored.items()}
    return build_fingerprint(known, files.reader(blobs, stored))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            yield chunk
