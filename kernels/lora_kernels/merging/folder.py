"""Merge of folders: from a base model's folder and adapter folders to a model folder."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_contract.adapter.headed import labelled_config
from lora_contract.devices import Device
from lora_contract.pipelines import is_of_diffusers, layout
from lora_contract.quantized import FILES as QUANTIZATION_FILES
from lora_contract.quantized import without_quantization
from lora_kernels.checkpoint.folders import base_paths, moved_input, pipeline_folders, read_adapter, read_base
from lora_kernels.checkpoint.records import Progress
from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.checkpoint.staging import Staging, identity_of, resumable_folder
from lora_kernels.devices.choice import Execution
from lora_kernels.merging.base_copies import check_base_copies
from lora_kernels.merging.dequantized import dequantized
from lora_kernels.merging.device.cost import choose_device
from lora_kernels.merging.plan import MergePlan, plan_merge
from lora_kernels.merging.shards import DEVICE_FILES, shard_stream
from lora_kernels.merging.stats import MIN_KEPT, MergeReport, TensorStats, check_kept, merge_report
from lora_kernels.quantized.reading import read_quantized
from lora_kernels.types.matching.tied import untied_config

if TYPE_CHECKING:
    from lora_kernels.devices.accelerator import Accelerator

# Model files other than weights. The README describes the base, not the result, and is not copied.
_COPIED_SUFFIXES: Final = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken"})
_COPIED_PREFIXES: Final = ("LICENSE", "LICENCE", "NOTICE")


def merge_folder(
    base_dir: str | os.PathLike[str],
    adapters: Sequence[tuple[str | os.PathLike[str], float]],
    out_dir: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    onto: str = "fp",
    rounding: str = "nearest",
    seed: int = 0,
    prefix: str | None = None,
    min_kept: float | None = MIN_KEPT,
    digests: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    device: Device | Accelerator = "cpu",
) -> MergeReport:
    """Merge adapter folders, each with its weight, into a copy of a base model's folder.

    The result has the base's files and index; `out_dir` appears complete or not at all. After an interruption, or when
    the disk was full, the same call resumes after the last completed file.

    Args:
        dtype, onto, rounding, seed: see `plan_merge`.
        prefix: of the part of the base that adapters were trained on alone, whose modules the base has there only.
        min_kept: see `check_kept`.
        digests: hash the weight files while writing, which takes longer than everything else.
        threads: None for one per processor; the bytes do not depend on it.
        progress: called with bytes written and bytes in total, from several threads.
        device: `cpu`, `cuda`, `auto` for the one that is predicted to be faster, or an open device. Bytes of the two
            are equal only as far as `docs/devices.md` says, so that a merge resumes on the same device only.

    Raises RegistryError as `read_quantized`, `plan_merge`, `check_base_copies`, `stream_shard`, `check_kept`,
    `resumable_folder` and `devices.choose` do, and `not-found` for missing files.
    """
    plan = _plan(base_dir, adapters, prefix, dtype=dtype, onto=onto, rounding=rounding, seed=seed)
    folders = [folder for folder, _ in adapters]
    _check_copies(plan, base_dir, folders)
    execution = (
        choose_device(plan, device, digests=digests, threads=threads) if isinstance(device, str) else device.execution
    )
    identity = identity_of([plan, digests, execution.identity], [base_dir, *folders])
    with resumable_folder(Path(out_dir), needed=plan.size, identity=identity, notes=tuple[TensorStats, ...]) as staging:
        _write_shards(
            plan,
            base_dir,
            folders,
            staging,
            device=execution if isinstance(device, str) else device,
            digests=digests,
            threads=threads,
            progress=progress,
        )
        stats = [tensor for done in staging.finished.values() for tensor in done.notes]
        files = [done.file for done in staging.finished.values()]
        check_kept(stats, min_kept=min_kept)
        _write_indexes(Path(base_dir), staging.folder, plan)
        copy_side_files(
            Path(base_dir),
            staging.folder,
            lambda config: merged_config(config, plan),
            without=QUANTIZATION_FILES if plan.quantization != "keep" else frozenset(),
        )
    ignored = [name for adapter in plan.adapters for name in adapter.ignored]
    return merge_report(stats, files=files, ignored=ignored, dequantized=dequantized(plan), execution=execution)


def plan_folder(
    base_dir: str | os.PathLike[str],
    adapters: Sequence[tuple[str | os.PathLike[str], float]],
    *,
    dtype: str | None = None,
    onto: str = "fp",
    rounding: str = "nearest",
    seed: int = 0,
    prefix: str | None = None,
) -> MergePlan:
    """Plan what `merge_folder` would do, from the headers of its inputs alone."""
    return _plan(base_dir, adapters, prefix, dtype=dtype, onto=onto, rounding=rounding, seed=seed)


def _plan(
    base_dir: str | os.PathLike[str],
    adapters: Sequence[tuple[str | os.PathLike[str], float]],
    prefix: str | None,
    **options: Any,
) -> MergePlan:
    base, _ = read_base(base_dir)
    inputs = [read_adapter(folder, weight) for folder, weight in adapters]
    if prefix is not None:
        inputs = [moved_input(adapter, base, prefix) for adapter in inputs]
    with FolderSource(base_dir) as source:
        quantized = read_quantized(base, source.read)
    return plan_merge(base, inputs, quantized=quantized, **options)


def _check_copies(
    plan: MergePlan, base_dir: str | os.PathLike[str], adapter_dirs: Sequence[str | os.PathLike[str]]
) -> None:
    with ExitStack() as stack:
        base = stack.enter_context(FolderSource(base_dir))
        adapters = [stack.enter_context(FolderSource(folder)) for folder in adapter_dirs]
        check_base_copies(plan, base=base, adapters=adapters)


def merged_index(index: dict[str, Any], plan: MergePlan, folder: str = "") -> dict[str, Any]:
    """The base's index, updated for the result. folder: of the component that it belongs to, with its '/'."""
    tensors = [
        (tensor, shard.file.removeprefix(folder))
        for shard in plan.shards
        if shard.file.startswith(folder)
        for tensor in shard.tensors
    ]
    metadata = dict(index.get("metadata") or {})
    metadata["total_size"] = sum(tensor.end - tensor.start for tensor, _ in tensors)
    weight_map = {name: file for tensor, file in tensors for name, _, _ in tensor.entries}
    return {"metadata": metadata, "weight_map": weight_map}


def merged_config(config: dict[str, Any], plan: MergePlan) -> dict[str, Any]:
    """The base's config.json, updated for the head, the output dtype, its quantization and an untied output layer.
    Returns `config` itself if nothing changes."""
    if plan.architecture is not None:
        config = labelled_config(config, plan.architecture, plan.labels)
    if plan.untied is not None:
        config = untied_config(config, plan.untied_configs)
    if plan.quantization != "keep":
        config = without_quantization(config)
        if plan.quantization is not None:
            config["quantization_config"] = plan.quantization
    if plan.dtype is None or plan.dtype == "nf4" or is_of_diffusers(config):
        return config  # configs of diffusers have no dtype
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    return {**config, key: plan.dtype}


def _write_shards(
    plan: MergePlan,
    base_dir: str | os.PathLike[str],
    adapter_dirs: Sequence[str | os.PathLike[str]],
    staging: Staging[tuple[TensorStats, ...]],
    *,
    device: Execution | Accelerator,
    digests: bool,
    threads: int | None,
    progress: Progress | None,
) -> None:
    from lora_kernels.merging.execute import execute, execute_streams

    lock, written = threading.Lock(), sum(done.file.size for done in staging.finished.values())

    def count(size: int) -> None:
        nonlocal written
        with lock:
            written += size
            if progress is not None:
                progress(written, plan.size)

    with ExitStack() as stack:
        base = stack.enter_context(FolderSource(base_dir))
        adapters = [stack.enter_context(FolderSource(folder)) for folder in adapter_dirs]
        stream = shard_stream(plan, base=base, adapters=adapters, device=device)
        if stream.on_device or digests:
            at_once = min(threads or os.cpu_count() or 1, DEVICE_FILES) if stream.on_device else threads
            execute_streams(plan, staging, stream=stream.chunks, digests=digests, threads=at_once, count=count)
        else:
            execute(plan, staging, base=base, adapters=adapters, threads=threads, count=count)


def _write_indexes(base: Path, staging: Path, plan: MergePlan) -> None:
    for weights in layout(base_paths(base)):
        place = base / weights.index
        if not (base / weights.single).exists() and place.exists():
            _write_json(staging / weights.index, merged_index(json.loads(place.read_bytes()), plan, weights.folder))


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_side_files(
    base: Path,
    staging: Path,
    changed: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    without: Collection[str] = (),
) -> None:
    """Copy config, tokenizer and licence files, and those of a pipeline's components. changed: returns the result's
    config.json, or the same object. without: names of files to leave out."""
    folders = pipeline_folders(base)
    for entry in sorted([*base.iterdir(), *(entry for folder in folders for entry in (base / folder).iterdir())]):
        wanted = entry.suffix in _COPIED_SUFFIXES or entry.name.upper().startswith(_COPIED_PREFIXES)
        if not entry.is_file() or not wanted or _is_index(entry.name) or entry.name in without:
            continue
        target = staging / entry.relative_to(base)
        target.parent.mkdir(exist_ok=True)
        config = json.loads(entry.read_bytes()) if entry.name == "config.json" else None
        if config is not None and (merged := changed(config)) is not config:
            _write_json(target, merged)
        else:
            shutil.copyfile(entry, target)


def _is_index(name: str) -> bool:
    return name.endswith(".index.json") or ".index." in name
