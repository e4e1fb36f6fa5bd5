"""The children of a merge. One plans it and stores the files beside the weights; then one per weight file merges that
file. The plan is made once: it is checkpointed as the result of its step, and the others start from it."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import msgspec

from lora_contract import decoding
from lora_contract.adapter.config import parse_config
from lora_contract.devices import RecipeDevice
from lora_contract.digest import Digest
from lora_contract.fingerprint import build_fingerprint
from lora_contract.pipelines import INDEX_SUFFIX
from lora_contract.quantized import FILES as QUANTIZATION_FILES
from lora_contract.recipe import MergeRecipe
from lora_contract.tensors import read_header
from lora_kernels.devices import Execution, require
from lora_kernels.merging import (
    AdapterInput,
    MergePlan,
    Source,
    TensorStats,
    check_base_copies,
    check_device,
    dequantized,
    merged_config,
    merged_index,
    plan_merge,
    read_quantized,
    shard_size,
)
from lora_kernels.merging.shards import shard_stream
from lora_kernels.merging.stream import Chunk as MergedChunk
from lora_registry.blobs.keys import address, new_life
from lora_registry.blobs.protocols import Chunk, JobStore, Stored
from lora_registry.processes.child import ChildReporter
from lora_registry.runtime.faults import fault_point
from lora_registry.worker.children import files

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
WEIGHTS_END = ".safetensors"


class MergeInput(msgspec.Struct, frozen=True):
    """A recipe with the files of the versions that it names. inputs: in the recipe's order."""

    recipe: MergeRecipe
    base: files.Files
    inputs: tuple[files.Files, ...]


class PlannedFile(msgspec.Struct, frozen=True):
    """A weight file of the result.

    Args:
        size: in bytes.
        plan: of this file alone, packed by `pack`.
        verify: files of the base whose digests are compared while this one is merged; each is compared once.
    """

    file: str
    size: int
    plan: str
    verify: tuple[str, ...] = ()


class PlannedMerge(msgspec.Struct, frozen=True):
    """What is to be merged.

    Args:
        weights: to merge, in this order.
        side_files: the other files, already stored.
        ignored: names of tensors of the adapters that change nothing.
        architecture: of the result, if an adapter brings the head of a task.
        dequantized: what became of the base's quantized weights.
    """

    weights: tuple[PlannedFile, ...]
    side_files: tuple[files.ResultFile, ...]
    ignored: tuple[str, ...] = ()
    architecture: str | None = None
    dequantized: str | None = None


class ShardInput(msgspec.Struct, frozen=True):
    """device: of the recipe."""

    planned: PlannedFile
    base: files.Files
    inputs: tuple[files.Files, ...]
    device: RecipeDevice = "cpu"


class MergedFile(files.ResultFile, frozen=True, kw_only=True):
    """tensors: those that the adapters change. execution: the device that computed it."""

    tensors: tuple[TensorStats, ...]
    execution: Execution = Execution()


def plan(data: MergeInput, reporter: ChildReporter) -> PlannedMerge:
    """Plan from headers; of weights, only what adapters store as copies of them is read. Raises RegistryError if the
    adapters do not fit or cannot be merged."""
    blobs = files.blobs()
    for adapter in data.inputs:
        files.verify_all(blobs, adapter)
    # Tokenizer, index and config are read, or referred to, here; the weights are compared by who reads them all.
    files.verify_all(blobs, {path: file for path, file in data.base.items() if not path.endswith(WEIGHTS_END)})
    with files.blaming_the_store(blobs, data.base):
        merge_plan = _plan(data, blobs)
        check_device(merge_plan, data.recipe.device)
        with _opened(blobs, data) as (base, adapters):
            check_base_copies(merge_plan, base=base, adapters=adapters)
    weights: list[PlannedFile] = []
    shards = {shard.file for shard in merge_plan.shards}
    others = tuple(sorted(path for path in data.base if path.endswith(WEIGHTS_END) and path not in shards))
    for shard in merge_plan.shards:
        touched = sum(bool(tensor.deltas) for tensor in shard.tensors)
        reporter.log(f"{shard.file}: {len(shard.tensors)} tensors, {touched} touched, {shard.size} bytes")
        verify = (*((shard.file,) if shard.file in data.base else ()), *(() if weights else others))
        weights.append(
            PlannedFile(shard.file, shard.size, pack(msgspec.structs.replace(merge_plan, shards=(shard,))), verify)
        )
    plain = dequantized(merge_plan)
    if plain is not None:
        reporter.log(f"dequantized: {plain}")
    side = _side_files(data.base, merge_plan, blobs)
    reporter.log(f"{len(side)} files beside the weights")
    ignored = tuple(name for adapter in merge_plan.adapters for name in adapter.ignored)
    return PlannedMerge(tuple(weights), side, ignored, merge_plan.architecture, plain)


def merge_shard(data: ShardInput, reporter: ChildReporter) -> MergedFile:
    """Merge one file and stream it into the blob store.

    Tensors that the adapters do not change are ranges of the base, which the store may copy by itself.
    """
    blobs = files.blobs()
    merge_plan, file = unpack(data.planned.plan), data.planned.file
    total = shard_size(merge_plan, file)
    places = {path: stored.where for path, stored in data.base.items()}
    verification = files.Verification(blobs, {path: data.base[path] for path in data.planned.verify})
    tensors: list[TensorStats] = []
    execution = require(data.device)
    if execution.device != "cpu":
        reporter.log(f"{file}: on {execution.processor}")

    def pieces(stream: Iterator[MergedChunk]) -> Iterator[Chunk]:
        done = 0
        for view, origin in stream:
            yield view if origin is None else Stored(view, places[origin[0]], origin[1])
            done += len(view)
            fault_point("merge.piece")
            reporter.progress(file, done=done, total=total, unit="bytes")
        verification.finish()

    with files.blaming_the_store(blobs, data.base, *data.inputs), _opened(blobs, data) as (base, adapters):
        shards = shard_stream(merge_plan, base=base, adapters=adapters, device=execution)
        with closing(shards.chunks(file, tensors.append)) as stream:
            where, size = blobs.put_unknown(pieces(stream), life=new_life())
    return MergedFile(file, size, str(where), getattr(where, "life", ""), tensors=tuple(tensors), execution=execution)


def pack(merge_plan: MergePlan) -> str:
    """Encode a plan for a checkpoint, compressed: a plan of ten thousand tensors is megabytes of repetitive JSON."""
    return base64.b85encode(zlib.compress(msgspec.json.encode(merge_plan), 6)).decode()


def unpack(text: str) -> MergePlan:
    return decoding.decode(zlib.decompress(base64.b85decode(text)), MergePlan)


def _side_files(base: files.Files, merge_plan: MergePlan, blobs: JobStore) -> tuple[files.ResultFile, ...]:
    """Store index and config of the result; tokenizer and licence files are the base's own blobs."""
    read = files.reader(blobs, base)
    side = []
    for path, stored in base.items():
        if path.endswith(WEIGHTS_END) or path.lower() == "readme.md":
            continue
        if path in QUANTIZATION_FILES and merge_plan.quantization != "keep":
            continue
        folder, _, name = path.rpartition("/")
        if name.endswith(INDEX_SUFFIX):
            index = json.loads(read(path, 0, stored.size))
            side.append(store_json(blobs, path, merged_index(index, merge_plan, f"{folder}/" if folder else "")))
            continue
        config = json.loads(read(path, 0, stored.size)) if name == "config.json" else None
        if config is not None and (merged := merged_config(config, merge_plan)) is not config:
            side.append(store_json(blobs, path, merged))
        else:
            side.append(files.ResultFile(path, stored.size, stored.digest))
    return tuple(side)


def _plan(data: MergeInput, blobs: JobStore) -> MergePlan:
    read_base = files.reader(blobs, data.base)
    fingerprint = build_fingerprint({path: (file.size, file.digest) for path, file in data.base.items()}, read_base)
    recipe = data.recipe
    adapters = []
    for stored, item in zip(data.inputs, recipe.inputs, strict=True):
        read = files.reader(blobs, stored)
        config = parse_config(read(CONFIG, 0, stored[CONFIG].size))
        header = read_header(read, WEIGHTS, stored[WEIGHTS].size)
        adapters.append(AdapterInput(config=config, header=header, weight=item.weight, file=WEIGHTS))
    return plan_merge(
        fingerprint,
        adapters,
        recipe.dtype,
        quantized=read_quantized(fingerprint, read_base),
        onto=recipe.onto,
        rounding=recipe.rounding,
        seed=recipe.seed,
    )


@contextmanager
def _opened(blobs: JobStore, data: MergeInput | ShardInput) -> Iterator[tuple[Source, list[Source]]]:
    """The base and the adapters as sources."""
    with ExitStack() as stack:
        base, *adapters = [stack.enter_context(files.opened(blobs, each)) for each in (data.base, *data.inputs)]
        yield base, adapters


def store_json(blobs: JobStore, path: str, document: dict[str, Any]) -> files.ResultFile:
    body = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    where = address(Digest.of(body), new_life())
    blobs.put([body], digest=where, size=len(body))
    return files.ResultFile.made(path, len(body), where)
