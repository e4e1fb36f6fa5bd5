"""Read what a merge needs to know of a base folder and an adapter folder, from headers and configs only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import msgspec

from lora_contract import canonical
from lora_contract.adapter.config import AdapterConfig, parse_config
from lora_contract.adapter.moving import moved
from lora_contract.adapter.sorting import sort_tensors
from lora_contract.base import BaseFingerprint
from lora_contract.errors import RegistryError
from lora_contract.fingerprint import INDEX, SINGLE, build_fingerprint, weights_in_use
from lora_contract.modules import modules_of
from lora_contract.pipelines import FILE, INDEX_SUFFIX, SUFFIX, folders_of, layout
from lora_contract.tensors import Header, read_header
from lora_kernels.checkpoint.sources import FolderSource

ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
ADAPTER_CONFIG: Final = "adapter_config.json"
MAX_JSON: Final = 64 * 1024 * 1024


class AdapterInput(msgspec.Struct, frozen=True):
    """An adapter to merge: its parsed config, the header of its weight file, its weight in the sum.

    file: the name of the weight file in its source.
    """

    config: AdapterConfig
    header: Header
    weight: float = 1.0
    file: str = ADAPTER_WEIGHTS


def read_base(folder: str | os.PathLike[str]) -> tuple[BaseFingerprint, dict[str, Any] | None]:
    """Fingerprint of a base folder (the digests of its files are left empty), and its index.

    The index is None if the weights are one file. Raises RegistryError `rejected` as `build_fingerprint` does.
    """
    with FolderSource(folder) as source:
        present = base_paths(folder)
        needed = {weights.folder + "config.json" for weights in layout(present)}
        if FILE in present:
            needed |= {FILE, *(path for path in present if "/" in path and not path.endswith(SUFFIX))}
        names = {path: source.size(path) for path in present if path.endswith((FILE, SUFFIX, INDEX_SUFFIX))}
        needed |= weights_in_use(names, source.read) or {SINGLE}
        index = _read_json(source, INDEX) if INDEX in needed and FILE not in present else None
        return build_fingerprint({path: (source.size(path), "") for path in needed}, source.read), index


def base_paths(folder: str | os.PathLike[str]) -> frozenset[str]:
    """The names of the files of a base, with those of a pipeline's components."""
    root = Path(folder)
    inner = [root / name for name in pipeline_folders(root)]
    return frozenset(
        entry.relative_to(root).as_posix() for place in (root, *inner) for entry in place.iterdir() if entry.is_file()
    )


def pipeline_folders(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """The folders of a pipeline's components; empty for a folder of one model."""
    root = Path(folder)
    if not (root / FILE).is_file():
        return ()
    with FolderSource(root) as source:
        named = folders_of(_read_json(source, FILE))
    return tuple(sorted(name for name in named if (root / name).is_dir()))


def read_adapter(folder: str | os.PathLike[str], weight: float = 1.0) -> AdapterInput:
    """Config and header of an adapter folder."""
    with FolderSource(folder) as source:
        config = parse_config(_read(source, ADAPTER_CONFIG, MAX_JSON))
        header = read_header(source.read, ADAPTER_WEIGHTS, source.size(ADAPTER_WEIGHTS))
        return AdapterInput(config=config, header=header, weight=weight, file=ADAPTER_WEIGHTS)


def moved_input(adapter: AdapterInput, base: BaseFingerprint, prefix: str) -> AdapterInput:
    """An adapter of a part of the base with the base's names; raises as `moved` does. One whose modules the base has
    under their own names is returned as it is."""
    modules = modules_of(base)
    groups = sort_tensors(adapter.config.peft_type, adapter.header).modules
    if all(modules.resolve(group.path) is not None for group in groups):
        return adapter
    config, header = moved(adapter.config, adapter.header, modules, prefix)
    return msgspec.structs.replace(adapter, config=config, header=header)


def _read(source: FolderSource, file: str, limit: int) -> bytes:
    size = source.size(file)
    if size > limit:
        raise RegistryError("rejected", f"{file} has {size} bytes; the maximum is {limit}.")
    return source.read(file, 0, size)


def _read_json(source: FolderSource, file: str) -> dict[str, Any]:
    document = canonical.loads_strict(_read(source, file, MAX_JSON), what=file, max_bytes=MAX_JSON)
    if not isinstance(document, dict):
        raise RegistryError("rejected", f"{file} is not a JSON object.")
    return document
