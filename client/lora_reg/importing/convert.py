"""From the files of an adapter to folders that can be pushed: one, or one for each part of a diffusion LoRA."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_contract.adapter.report import CONFIG, WEIGHTS
from lora_contract.errors import RegistryError
from lora_contract.modules import modules_of
from lora_contract.pipelines import is_pipeline
from lora_reg.importing import pickles
from lora_reg.importing.bases import Bases
from lora_reg.importing.formats import adapterhub, kohya, mlx, pipeline, tensors
from lora_reg.importing.formats.document import Converted
from lora_reg.importing.formats.pipeline import layers_of
from lora_reg.importing.recognise import NotAnAdapter, Recognised
from lora_reg.transfer.pinning import ResolvedBase


@dataclass(frozen=True, slots=True)
class Ready:
    """A folder to push. suffix: of the repository's name, for a further part of the same file."""

    folder: Path
    base: ResolvedBase
    suffix: str = ""
    notes: tuple[str, ...] = ()


def prepare(
    found: Recognised,
    config: Mapping[str, Any] | None,
    files: Mapping[str, Path],
    work: Path,
    bases: Bases,
    named: str | None,
) -> list[Ready]:
    """Write the folders to push.

    Args:
        files: the fetched files by path.
        work: an empty folder to write in.
        named: what the adapter, or its source, calls its base.

    Raises RegistryError `rejected` with the reason if it cannot be converted exactly, NotAnAdapter, `not-found`.
    """
    beside = {path: files[path] for path in found.beside if path in files}
    weights = files[found.weights]
    if found.pickled:
        pickles.to_safetensors(weights, work / "opened.safetensors")
        weights = work / "opened.safetensors"
    if found.format == "peft":
        base = bases.find(named)
        return [Ready(_folder(work / "adapter", files[CONFIG], weights, beside), base)]
    if weights.stat().st_size > tensors.MAX_BYTES:
        raise tensors.refused(f"its weights have more than {tensors.MAX_BYTES >> 30} GiB")
    values, metadata = tensors.load(weights.read_bytes())
    if found.format == "diffusion":
        return _diffusion(values, metadata, beside, work, bases, named)
    assert config is not None
    base = bases.find(named)
    known = modules_of(base.fingerprint).modules
    name = _name_in_config(base, named)
    if found.format == "mlx-lm":
        made = mlx.convert(config, values, known=known, tied=base.fingerprint.tied, base=name)
    else:
        made = adapterhub.convert(config, values, known=known, base=name)
    return [Ready(_write(work / "adapter", made, beside), base, notes=made.notes)]


def _diffusion(
    values: dict[str, tensors.Tensor],
    metadata: Mapping[str, str],
    beside: Mapping[str, Path],
    work: Path,
    bases: Bases,
    named: str | None,
) -> list[Ready]:
    if not kohya.is_diffusion(values):
        raise NotAnAdapter(f"it has no {CONFIG}, and its tensors are not named as in a LoRA of kohya or diffusers")
    whole = _pipeline(bases, named)
    if whole is not None:
        made = pipeline.convert(values, metadata, base=whole.fingerprint, name=_name_in_config(whole, named))
        return [Ready(_write(work / "adapter", made, beside), whole, notes=made.notes)]
    ready = []
    for index, component in enumerate(kohya.components(values)):

        def fits(base: ResolvedBase, component: str = component) -> bool:
            return kohya.fits(component, values, modules_of(base.fingerprint).modules, layers_of(base.fingerprint))

        try:
            base = bases.find(named, fits=fits)
        except RegistryError as error:
            raise RegistryError(error.code, f"For the part {component}: {error.detail}", hint=error.hint) from error
        known = modules_of(base.fingerprint).modules
        name = _name_in_config(base, named)
        made = kohya.convert(component, values, metadata, known=known, layers=layers_of(base.fingerprint), base=name)
        suffix = "" if index == 0 else f"-{component.replace('_', '-')}"
        ready.append(Ready(_write(work / component, made, beside), base, suffix, made.notes))
    return ready


def _pipeline(bases: Bases, named: str | None) -> ResolvedBase | None:
    """The pipeline that a LoRA file is for: the given one, or the one that its source names; None: single models."""
    given = bases.given()
    found = [base for base in given if is_pipeline(base.fingerprint.config)]
    if len(found) == 1:
        return found[0]
    if found or given or named is None:
        return None
    base = bases.find(named)
    return base if is_pipeline(base.fingerprint.config) else None


def _name_in_config(base: ResolvedBase, named: str | None) -> str:
    """What base_model_name_or_path says: the source's name if the base has it, else that of the registry."""
    return named if named is not None and named in base.names else f"{base.view.namespace}/{base.view.name}"


def _write(folder: Path, made: Converted, beside: Mapping[str, Path]) -> Path:
    folder.mkdir()
    (folder / CONFIG).write_bytes(made.config_bytes())
    (folder / WEIGHTS).write_bytes(tensors.dump(made.tensors, made.metadata))
    return _copy(beside, folder)


def _folder(folder: Path, config: Path, weights: Path, beside: Mapping[str, Path]) -> Path:
    folder.mkdir()
    return _copy({CONFIG: config, WEIGHTS: weights, **beside}, folder)


def _copy(files: Mapping[str, Path], folder: Path) -> Path:
    for path, place in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(place)
        except OSError:
            shutil.copyfile(place, target)
    return folder
