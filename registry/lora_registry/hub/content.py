"""What the files of a Hub repository make: an adapter, a model, an evaluation set, or nothing whole yet. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from lora_contract import dataset
from lora_contract.adapter.files import is_base_file
from lora_contract.adapter.report import CONFIG, WEIGHTS
from lora_contract.adapter.training import STATE as TRAINER_STATE
from lora_contract.byproducts import is_byproduct, is_of_run
from lora_contract.errors import RegistryError
from lora_contract.manifest import Kind
from lora_contract.pipelines import FILE as PIPELINE
from lora_contract.pipelines import LORA_FILE

MODEL_CONFIG: Final = "config.json"
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_SHARD: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors\Z")

_PICKLES: Final = ("adapter_model.bin", "pytorch_model.bin")
_STEP: Final = re.compile(r"\bstep (\d{1,12})\b")
_EPOCH: Final = re.compile(r"\bepoch (\d{1,12})\b")


def is_left_out(path: str) -> bool:
    """Return whether a path is a by-product of a trainer, or a file of git: it is neither opened nor kept."""
    # The trainer sends its state with every checkpoint: a version of its own for each would say nothing new.
    return any(part.startswith(".") for part in path.split("/")) or is_of_run(path) or path == TRAINER_STATE


def kept(kind: Kind, paths: Collection[str]) -> set[str]:
    """Return those of the files that are part of a version of this kind; the others lie beside it by accident."""
    match kind:
        case "adapter":
            return {path for path in paths if not _is_beside(path)}
        case "dataset":
            return {path for path in paths if path == dataset.FILE}
        case _:
            return {path for path in paths if is_base_file(path)}


def _is_beside(path: str) -> bool:
    """Whether a path is left out of an adapter, as `lora-reg push` does."""
    *folders, name = path.split("/")
    if any(is_byproduct(folder, folder=True, weights=True) for folder in folders):
        return True
    return is_byproduct(name, folder=False, weights=True)


def whole(paths: Collection[str], *, dataset_repository: bool, base: bool) -> Kind | None:
    """Return the kind of version that these files make; None if something is still missing.

    base: the repository is a base. Raises RegistryError `rejected` for files that can never become a version.
    """
    if dataset_repository:
        return _dataset(paths)
    if CONFIG in paths:
        if WEIGHTS in paths:
            return "adapter"
        _refuse_pickles(paths)
        return None
    _refuse_diffusers(paths)
    if MODEL_CONFIG in paths and _has_weights(paths):
        return "base" if base else "model"
    if MODEL_CONFIG in paths:
        _refuse_pickles(paths)
    return None


def metadata(message: str) -> dict[str, str]:
    """Return metadata of a version: what a trainer says in its commit message of where it was."""
    found = {"source": "hub"}
    for name, pattern in (("step", _STEP), ("epoch", _EPOCH)):
        if match := pattern.search(message):
            found[name] = str(int(match[1]))
    return found


def _has_weights(paths: Collection[str]) -> bool:
    if _SINGLE in paths:
        return True
    shards = [match for path in paths if (match := _SHARD.match(path))]
    if _INDEX not in paths or not shards:
        return _INDEX in paths and any(path.endswith(".safetensors") for path in paths)
    if any(int(match[3]) > len(shards) for match in shards):
        return False
    expected = {(match[1], number, match[3]) for match in shards for number in range(1, int(match[3]) + 1)}
    return expected == {(match[1], int(match[2]), match[3]) for match in shards}


def _dataset(paths: Collection[str]) -> Kind | None:
    others = [path for path in paths if path != dataset.FILE and not path.lower().endswith(".md")]
    if others:
        raise RegistryError(
            "rejected",
            f"A dataset is a single file {dataset.FILE}; found {', '.join(sorted(others))[:200]}.",
            hint=f"Upload JSON lines as {dataset.FILE}: `upload_file(path_in_repo='{dataset.FILE}', ...)`.",
        )
    return "dataset" if dataset.FILE in paths else None


def _refuse_pickles(paths: Collection[str]) -> None:
    for path in _PICKLES:
        if path in paths:
            raise RegistryError(
                "rejected",
                f"{path} is a pickle, which is never opened.",
                hint="Save the weights as safetensors (`safe_serialization=True`) and push again.",
            )


def _refuse_diffusers(paths: Collection[str]) -> None:
    """A version needs more than these files say: the base's modules, or which components a pipeline has."""
    if LORA_FILE in paths:
        raise RegistryError(
            "rejected",
            f"{LORA_FILE} is a file of diffusers, without {CONFIG}: it becomes an adapter by an import.",
            hint=f"Run `lora-reg import FOLDER --base NAME` with the folder that holds {LORA_FILE}.",
        )
    if PIPELINE in paths:
        raise RegistryError(
            "rejected",
            f"{PIPELINE} belongs to a pipeline of diffusers, which is not uploaded by this API.",
            hint="Run `lora-reg base add NAME DIR` with the folder of the pipeline.",
        )
