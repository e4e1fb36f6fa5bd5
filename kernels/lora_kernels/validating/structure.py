"""The check of a push, repeated on folders: PEFT must load only files that pass it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lora_contract.adapter.check import AdapterFacts, AdapterFile, check_adapter
from lora_contract.adapter.report import WEIGHTS
from lora_contract.base import BaseTensor
from lora_contract.byproducts import is_byproduct, is_housekeeping
from lora_contract.validation import LayerResult, LayerState
from lora_kernels.checkpoint.folders import read_base
from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.validating.subject import Subject


def structure(subject: Subject) -> tuple[LayerResult, AdapterFacts | None]:
    """Check names, shapes and values of the adapter against the base. Returns the facts as well, None if the adapter
    cannot be read."""
    files = [
        AdapterFile(path.relative_to(subject.adapter).as_posix(), path.lstat().st_size)
        for path in sorted(_pushed(subject.adapter))
    ]
    fingerprint, _ = read_base(subject.base)
    with FolderSource(subject.adapter) as adapter, FolderSource(subject.base) as base:
        found = check_adapter(
            files,
            adapter.read,
            fingerprint,
            base_aliases=subject.base_names or frozenset(),
            accept_base=subject.base_names is None,
            read_base=partial(_tensor, base),
        )
    # If no name of the base is given, its name in the config cannot be checked.
    findings = [f for f in found.findings if subject.base_names is not None or f.code != "base-mismatch"]
    state: LayerState = "passed" if found.accepted else "failed"
    facts = {"tensors": found.facts.tensors, "max_rank": found.facts.max_rank} if found.facts else {}
    return LayerResult(state, findings, facts), found.facts


def _pushed(folder: Path) -> Iterator[Path]:
    """What a push of the folder would send: not what trainers leave beside an adapter."""
    weights = os.path.lexists(folder / WEIGHTS)
    waiting = [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            link, inner = path.is_symlink(), path.is_dir()
            if is_housekeeping(path.name) or is_byproduct(path.name, folder=inner or link, weights=weights):
                continue
            if inner and not link:
                waiting.append(path)
            else:
                yield path


def _tensor(source: FolderSource, tensor: BaseTensor, offset: int, length: int) -> bytes:
    return source.read(tensor.file, tensor.start + offset, length)
