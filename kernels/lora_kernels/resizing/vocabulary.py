"""A base with another number of tokens: rows are appended to its embedding and output layer, or cut off.

New rows are given, or the mean of the old ones: summed in float64, row by row, and rounded once, so that the bytes do
not depend on the machine. All other bytes are the base's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.tensors import write_header
from lora_contract.vocabulary import MAX_VOCABULARY, NewRows, check_rows, resized_config, vocabulary_tensors
from lora_kernels.checkpoint.folders import read_base
from lora_kernels.checkpoint.records import FileRecord
from lora_kernels.checkpoint.sinks import FolderSink
from lora_kernels.checkpoint.sources import FolderSource, Source
from lora_kernels.checkpoint.staging import FinishedFile, identity_of, resumable_folder
from lora_kernels.checkpoint.weights import StoredWeights
from lora_kernels.merging.folder import copy_side_files
from lora_kernels.merging.plan import METADATA
from lora_kernels.merging.stream import COPY_BYTES, Chunk
from lora_kernels.numeric.blocks import blocks
from lora_kernels.numeric.dtypes import decode, encode, storage

INDEX: Final = "model.safetensors.index.json"


class VocabularyFile(msgspec.Struct, frozen=True):
    """A weight file of the result. tensors: those of the base's file, in its order, and how many rows each has then;
    None if it is unchanged."""

    file: str
    size: int
    tensors: tuple[tuple[BaseTensor, int | None], ...]


class VocabularyPlan(msgspec.Struct, frozen=True):
    """rows: of the base's embedding. files: those that change; all others are the base's own."""

    rows: int
    vocabulary: int
    files: tuple[VocabularyFile, ...]
    given: dict[str, NewRows]
    total: int


class VocabularyReport(msgspec.Struct, frozen=True):
    """tensors: those whose rows changed. given: those whose new rows were given; others have the mean."""

    before: int
    after: int
    tensors: tuple[str, ...]
    given: tuple[str, ...]


def plan_vocabulary(base: BaseFingerprint, vocabulary: int, rows: Sequence[NewRows] = ()) -> VocabularyPlan:
    """Plan a resize from the headers of a base.

    Raises RegistryError `unsupported` for a base whose embedding is unknown, `invalid-request` for the number of tokens
    that it has, and for rows that do not fit.
    """
    touched = {tensor.name: tensor for tensor in vocabulary_tensors(base)}
    before = next(iter(touched.values())).shape[0]
    if not 0 < vocabulary <= MAX_VOCABULARY or vocabulary == before:
        raise RegistryError("invalid-request", f"The base has {before} tokens; a resize to {vocabulary} is not one.")
    given = check_rows(tuple(rows), base, vocabulary)
    files: dict[str, list[BaseTensor]] = {}
    for tensor in base.tensors:
        files.setdefault(tensor.file, []).append(tensor)
    changed, total = [], 0
    for file, tensors in sorted(files.items()):
        ordered = sorted(tensors, key=lambda tensor: (tensor.start, tensor.end, tensor.name))
        placed = tuple((tensor, vocabulary if tensor.name in touched else None) for tensor in ordered)
        size = len(_header(placed)) + sum(_size(tensor, count) for tensor, count in placed)
        total += sum(_size(tensor, count) for tensor, count in placed)
        if any(count is not None for _, count in placed):
            changed.append(VocabularyFile(file, size, placed))
    return VocabularyPlan(before, vocabulary, tuple(changed), given, total)


def stream_vocabulary(plan: VocabularyPlan, file: VocabularyFile, base: Source) -> Iterator[Chunk]:
    """Yield the bytes of a file, each chunk valid until the next. Raises RegistryError `corrupt`."""
    raw = bytearray(COPY_BYTES)
    yield Chunk(memoryview(_header(file.tensors)), None)
    for tensor, count in file.tensors:
        end = tensor.end if count is None else min(tensor.end, tensor.start + _size(tensor, count))
        for position in range(tensor.start, end, COPY_BYTES):
            view = memoryview(raw)[: min(COPY_BYTES, end - position)]
            base.read_into(tensor.file, position, view)
            yield Chunk(view, (tensor.file, position))
        if count is None or count <= tensor.shape[0]:
            continue
        row = _given(plan.given[tensor.name], tensor) if tensor.name in plan.given else _mean(tensor, base)
        repeated = 1 if tensor.name in plan.given else count - tensor.shape[0]
        for _ in range(repeated):
            yield Chunk(memoryview(row), None)


def resized_index(index: dict[str, Any], plan: VocabularyPlan) -> dict[str, Any]:
    return {**index, "metadata": {**(index.get("metadata") or {}), "total_size": plan.total}}


def vocabulary_report(plan: VocabularyPlan) -> VocabularyReport:
    names = [tensor.name for file in plan.files for tensor, count in file.tensors if count is not None]
    return VocabularyReport(plan.rows, plan.vocabulary, tuple(sorted(names)), tuple(sorted(plan.given)))


def resize_vocabulary_folder(
    base_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    vocabulary: int,
    rows: Sequence[NewRows] = (),
) -> VocabularyReport:
    """Resize the base of a folder. `out_dir` appears complete or not at all; raises as `plan_vocabulary` does."""
    base, index = read_base(base_dir)
    plan = plan_vocabulary(base, vocabulary, rows)
    identity = identity_of([plan], [base_dir])
    changed = {file.file: file for file in plan.files}
    untouched = {tensor.file for tensor in base.tensors} - changed.keys()
    with (
        FolderSource(base_dir) as source,
        resumable_folder(Path(out_dir), needed=plan.total, identity=identity, notes=type(None)) as staging,
    ):
        sink = FolderSink(staging.folder)
        for name, file in changed.items():
            if name not in staging.finished:
                sink.write(name, file.size, (chunk.view for chunk in stream_vocabulary(plan, file, source)))
                staging.finish(FinishedFile(FileRecord(name, file.size, None), None))
        for name in sorted(untouched - staging.finished.keys()):
            size = source.size(name)
            sink.write(name, size, _copied(source, name, size))
            staging.finish(FinishedFile(FileRecord(name, size, None), None))
        if index is not None:
            _write_json(staging.folder / INDEX, resized_index(index, plan))
        copy_side_files(
            Path(base_dir), staging.folder, lambda config: resized_config(config, plan.rows, plan.vocabulary)
        )
    return vocabulary_report(plan)


def _copied(source: FolderSource, file: str, size: int) -> Iterator[memoryview]:
    raw = bytearray(COPY_BYTES)
    for position in range(0, size, COPY_BYTES):
        view = memoryview(raw)[: min(COPY_BYTES, size - position)]
        source.read_into(file, position, view)
        yield view


def _header(tensors: Sequence[tuple[BaseTensor, int | None]]) -> bytes:
    entries = [(tensor.name, tensor.dtype, _shape(tensor, count)) for tensor, count in tensors]
    return write_header(entries, METADATA)


def _shape(tensor: BaseTensor, count: int | None) -> tuple[int, ...]:
    return tensor.shape if count is None else (count, *tensor.shape[1:])


def _size(tensor: BaseTensor, count: int | None) -> int:
    size = tensor.end - tensor.start
    return size if count is None else size // tensor.shape[0] * count


def _mean(tensor: BaseTensor, base: Source) -> bytes:
    """The mean of the rows of a tensor, in its dtype."""
    columns = math.prod(tensor.shape[1:])
    weights = StoredWeights(base, tensor.file, tensor.start, tensor.dtype)
    total = np.zeros(columns, np.float64)
    for block in blocks(0, tensor.shape[0], columns, row_group=1):
        values = weights.read(block, np.empty(block.shape, np.float32)).reshape(-1, columns)
        for row in values:
            total += row
    mean = (total / tensor.shape[0]).astype(np.float32)
    return encode(mean, tensor.dtype, np.empty(columns, storage(tensor.dtype))).tobytes()


def _given(rows: NewRows, tensor: BaseTensor) -> bytes:
    raw = np.frombuffer(rows.bytes(), storage(rows.dtype))
    values = decode(raw, rows.dtype, np.empty(raw.shape, np.float32))
    if not np.isfinite(values).all():
        raise RegistryError("rejected", f"The rows given for {tensor.name} have NaN or infinite values.")
    return encode(values, tensor.dtype, np.empty(raw.shape, storage(tensor.dtype))).tobytes()


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
