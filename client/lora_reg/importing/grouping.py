"""Find adapters in a tree of files: which folders hold one, and which files belong to it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from lora_reg.importing.items import SourceFile

CONFIG: Final = "adapter_config.json"
_CHECKPOINT: Final = re.compile(r"(?:checkpoint|global_step|iter|epoch)[-_]?\d+\Z")
_SINGLE: Final = "pytorch_lora_weights.safetensors"
_MODEL: Final = "config.json"
_WEIGHTS: Final = ".safetensors"


def group(files: Iterable[SourceFile]) -> list[tuple[str, tuple[SourceFile, ...]]]:
    """Folders that may hold an adapter, with the files directly in them, by path; '' is the root.

    A folder with adapter_config.json is one, and a folder with the file of diffusers. So is each safetensors file of a
    folder without them and without a model's config.json: a LoRA of kohya's scripts, which has no config. Checkpoints
    inside a folder that has an adapter are left out, as `push` leaves them out.
    """
    folders: dict[str, list[SourceFile]] = {}
    for file in files:
        folder, _, name = file.path.rpartition("/")
        if not any(part.startswith(".") for part in file.path.split("/")):
            folders.setdefault(folder, []).append(replace(file, path=name))
    adapters = {folder for folder, inside in folders.items() if any(file.path == CONFIG for file in inside)}
    of_diffusers = {folder for folder, inside in folders.items() if any(file.path == _SINGLE for file in inside)}
    found: list[tuple[str, tuple[SourceFile, ...]]] = []
    for folder, inside in sorted(folders.items()):
        if folder in adapters:
            if not _is_checkpoint(folder, adapters):
                found.append((folder, tuple(inside)))
            continue
        names = {file.path for file in inside}
        if (
            _MODEL in names
            or any(_below(folder, adapter) for adapter in adapters)
            or _is_checkpoint(folder, of_diffusers)
        ):
            continue
        beside = tuple(file for file in inside if file.path == _SINGLE or not file.path.endswith(_WEIGHTS))
        found += [
            (_single(folder, file.path), beside if file.path == _SINGLE else (file,))
            for file in inside
            if file.path.endswith(_WEIGHTS)
        ]
    return found


def name_of(path: str, root: str) -> str:
    """A name for what lies at a path below a root."""
    return "-".join(part for part in path.split("/") if part) or root


def _is_checkpoint(folder: str, adapters: set[str]) -> bool:
    parent, _, leaf = folder.rpartition("/")
    return _CHECKPOINT.match(leaf) is not None and folder != "" and parent in adapters


def _below(folder: str, adapter: str) -> bool:
    return adapter == "" or folder.startswith(f"{adapter}/")


def _single(folder: str, name: str) -> str:
    """The path of a LoRA file: that of its folder if its own name says nothing."""
    return folder if name == _SINGLE else f"{folder}/{name.removesuffix('.safetensors')}".lstrip("/")
