"""The heavy half of a merge, run in child processes: plan, merge one file, write the files beside the weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from lora_contract.adapter.config import parse_config
from lora_contract.digest import Digest
from lora_contract.fingerprint import build_fingerprint
from lora_contract.recipe import MergeRecipe
from lora_contract.tensors import read_header
from lora_kernels.merging import (
    AdapterInput,
    MergePlan,
    RangeSource,
    TensorStats,
    merged_config,
    merged_index,
    plan_merge,
    read_quantized,
    shard_size,
)
from lora_kernels.merging.stream import stream_pieces
from lora_registry.blobs.protocols import BlobStore, Chunk, Stored
from lora_registry.processes.child import Report
from lora_registry.runtime.faults import fault_point
from lora_registry.worker.children import sources

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"


def plan(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """The files of the result, in order. Raises RegistryError where the adapters do not fit or cannot be merged."""
    made = _plan(spec, sources.blobs())
    for shard in made.shards:
        touched = sum(bool(tensor.deltas) for tensor in shard.tensors)
        report.log(f"{shard.file}: {len(shard.tensors)} tensors, {touched} touched, {shard.size} bytes")
    return {"files": [shard.file for shard in made.shards]}


def shard(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """Merge one file and stream it into the blob store; returns path, size, digest and what became of each tensor.

    What the adapters leave alone is the base's own bytes, which the store may copy by itself.
    """
    blobs = sources.blobs()
    made = _plan(spec, blobs)
    file, total = spec["file"], shard_size(made, spec["file"])
    digests = {path: Digest.parse(digest) for path, (digest, _) in spec["base"].items()}
    tensors: list[TensorStats] = []
    stream = stream_pieces(
        made,
        file,
        base=_source(blobs, spec["base"]),
        adapters=[_source(blobs, files) for files in spec["inputs"]],
        on_tensor=tensors.append,
    )

    def pieces() -> Iterator[Chunk]:
        done = 0
        for view, origin in stream:
            yield bytes(view) if origin is None else Stored(view, digests[origin[0]], origin[1])
            done += len(view)
            fault_point("merge.piece")
            report.progress(file, done=done, total=total, unit="bytes")

    digest, size = blobs.put_unknown(pieces())
    return {"path": file, "size": size, "digest": str(digest), "tensors": msgspec.to_builtins(tensors)}


def side_files(spec: dict[str, Any], report: Report) -> dict[str, Any]:
    """Index and config of the result; tokenizer and licence files are the base's own blobs."""
    blobs = sources.blobs()
    made = _plan(spec, blobs)
    read = sources.reader(blobs, spec["base"])
    files = []
    for path, (digest, size) in spec["base"].items():
        if path.endswith(".safetensors") or path.lower() == "readme.md":
            continue
        if path == INDEX:
            files.append(_store(blobs, path, merged_index(json.loads(read(path, 0, size)), made)))
            continue
        config = json.loads(read(path, 0, size)) if path == "config.json" else None
        if config is not None and (merged := merged_config(config, made)) is not config:
            files.append(_store(blobs, path, merged))
        else:
            files.append({"path": path, "size": size, "digest": digest})
    report.log(f"{len(files)} files beside the weights")
    return {"files": files}


def _plan(spec: dict[str, Any], blobs: BlobStore) -> MergePlan:
    base = {path: (int(size), digest) for path, (digest, size) in spec["base"].items()}
    read_base = sources.reader(blobs, spec["base"])
    fingerprint = build_fingerprint(base, read_base)
    recipe = _recipe(spec)
    adapters = []
    for files, item in zip(spec["inputs"], recipe.inputs, strict=True):
        read = sources.reader(blobs, files)
        config = parse_config(read(CONFIG, 0, int(files[CONFIG][1])))
        header = read_header(read, WEIGHTS, int(files[WEIGHTS][1]))
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


def _recipe(spec: dict[str, Any]) -> MergeRecipe:
    return msgspec.convert(spec["recipe"], MergeRecipe)


def _source(blobs: BlobStore, files: sources.Files) -> RangeSource:
    return RangeSource(sources.reader(blobs, files), sizes=sources.sizes(files))


def _store(blobs: BlobStore, path: str, document: dict[str, Any]) -> dict[str, Any]:
    body = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    digest = Digest.of(body)
    blobs.put([body], digest=digest, size=len(body))
    return {"path": path, "size": len(body), "digest": str(digest)}
