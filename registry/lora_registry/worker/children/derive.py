"""The heavy half of the operations whose result is an adapter, run in child processes.

Adapters are small: they are fetched into a working folder. Checkpoints are streamed from the blob store. What comes out
is written to the working folder and stored from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lora_contract.base import BaseFingerprint
from lora_contract.fingerprint import build_fingerprint
from lora_contract.recipe import ComposeRecipe, ConvertRecipe, ExtractRecipe, ResizeRecipe
from lora_registry.blobs.protocols import BlobStore
from lora_registry.processes.child import Report
from lora_registry.runtime.faults import fault_point
from lora_registry.settings import load
from lora_registry.worker import scratch
from lora_registry.worker.children import sources

PIECE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Work:
    """A child's working folder. inputs: a folder for each adapter that goes in. result: where the kernels write."""

    blobs: BlobStore
    report: Report
    inputs: list[Path]
    result: Path

    def progress(self, message: str, unit: str) -> Callable[[int, int], None]:
        """For kernels that tell what is done and what there is in all, from any thread."""

        def tell(done: int, total: int) -> None:
            fault_point(f"{message}.progress")
            self.report.progress(message, done=done, total=total, unit=unit)

        return tell

    def stored(self, made: msgspec.Struct) -> dict[str, Any]:
        """Store the files of the result; returns them, and what the kernels have told of it."""
        files = []
        for path in sorted(path for path in self.result.rglob("*") if path.is_file()):
            fault_point("derive.store")
            digest, size = self.blobs.put_unknown(_pieces(path))
            files.append({"path": path.relative_to(self.result).as_posix(), "size": size, "digest": str(digest)})
        return {"files": files, "report": msgspec.to_builtins(made)}


@contextmanager
def working(spec: dict[str, Any], report: Report) -> Iterator[Work]:
    """Fetch the adapters that go in, each checked against its digest; the folder is gone at the end."""
    blobs = sources.blobs()
    with scratch.folder(load().data) as folder:
        inputs = []
        for number, files in enumerate(spec["inputs"]):
            inputs.append(folder / f"input-{number}")
            sources.fetch(blobs, files, inputs[-1])
        fault_point("derive.fetched")
        yield Work(blobs, report, inputs, folder / "result")


def compose(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """Raises RegistryError where the method cannot do with these adapters."""
    from lora_kernels.composing import compose_folders

    recipe = msgspec.convert(spec["recipe"], ComposeRecipe)
    with working(spec, report) as work:
        made = compose_folders(
            [(folder, item.weight) for folder, item in zip(work.inputs, recipe.inputs, strict=True)],
            work.result,
            method=recipe.method,
            parameters=recipe.parameters,
            seed=recipe.seed,
            dtype=recipe.dtype,
            progress=work.progress("compose", "modules"),
        )
        return work.stored(made)


def resize(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    from lora_kernels.resizing import resize_folder

    recipe = msgspec.convert(spec["recipe"], ResizeRecipe)
    with working(spec, report) as work:
        made = resize_folder(
            work.inputs[0],
            work.result,
            rank=recipe.rank,
            keep_energy=recipe.keep_energy,
            dtype=recipe.dtype,
            progress=work.progress("resize", "modules"),
        )
        return work.stored(made)


def convert(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    from lora_kernels.resizing import convert_folder

    recipe = msgspec.convert(spec["recipe"], ConvertRecipe)
    with working(spec, report) as work:
        made = convert_folder(work.inputs[0], work.result, uniform_rank=recipe.uniform_rank, dtype=recipe.dtype)
        return work.stored(made)


def extract(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """Raises RegistryError where the two checkpoints are not of one model."""
    from lora_kernels.extracting import extract as run

    recipe = msgspec.convert(spec["recipe"], ExtractRecipe)
    blobs = sources.blobs()
    tuned, base = spec["inputs"][0], spec["base"]
    with working({**spec, "inputs": []}, report) as work:
        made = run(
            _fingerprint(blobs, tuned),
            sources.ThreadSource(blobs, tuned),
            _fingerprint(blobs, base),
            sources.ThreadSource(blobs, base),
            work.result,
            rank=recipe.rank,
            keep_energy=recipe.keep_energy,
            max_rank=recipe.max_rank,
            targets=recipe.targets,
            save_changed=recipe.save_changed,
            seed=recipe.seed,
            dtype=recipe.dtype,
            base_name=recipe.base_name,
            progress=work.progress("extract", "bytes"),
        )
        return work.stored(made)


def _fingerprint(blobs: BlobStore, files: sources.Files) -> BaseFingerprint:
    known = {path: (int(size), str(digest)) for path, (digest, size) in files.items()}
    return build_fingerprint(known, sources.reader(blobs, files))


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            yield piece
