"""Classification of saved modules, of their copies and of copies of the base's weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.groups import check_dtype, wrong_shape
from lora_contract.adapter.headed import Headed
from lora_contract.adapter.names import PREFIX
from lora_contract.adapter.placed import Structure
from lora_contract.adapter.report import CONFIG, CheckReport
from lora_contract.adapter.saved import OWN_HEADS, is_saved, unwrapped
from lora_contract.adapter.spelling import spelling
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.modules import BaseModules
from lora_contract.tensors import TensorEntry

_MOST_NAMES: Final = 64
"""Of modules_to_save that are looked for in the base: a config may have 200,000."""


def place_wrapped(
    tensor: TensorEntry,
    by_name: Mapping[str, TensorEntry],
    modules: BaseModules,
    structure: Structure,
    report: CheckReport,
) -> bool:
    """Classify what save_embedding_layers adds beside a saved module: the base's own module, which PEFT loads, and a
    second copy of the saved one, which it does not. Return False for other tensors."""
    name, wrapper = unwrapped(tensor.name.removeprefix(PREFIX))
    if wrapper in (None, "base_layer") or not tensor.name.startswith(PREFIX):
        return False
    module = name.rpartition(".")[0]
    if not is_saved(module, structure.names):
        return False
    if wrapper == "modules_to_save":
        twin = by_name.get(PREFIX + name)
        if twin is None:
            report.add(
                "missing-tensor",
                f"PEFT does not load {tensor.name}, a second copy, but {PREFIX}{name}, which is missing.",
                where=tensor.name,
                expected=PREFIX + name,
                hint="Save the adapter again; a part of it is missing.",
            )
        elif check_dtype(tensor, report):
            structure.twins.append((tensor, twin))
        return True
    owner = modules.resolve(module)
    parameter = modules.resolve_parameter(name) or (owner.weight if owner is not None else None)
    if parameter is None:
        return False
    if tensor.shape[1:] != parameter.shape[1:] or len(tensor.shape) != len(parameter.shape):
        wrong_shape(report, tensor, f"{list(parameter.shape)} as in the base")
    elif tensor.shape != parameter.shape:
        structure.resized.append((tensor, parameter))
    else:
        structure.originals.append((tensor, parameter))
    return True


def add_copy(tensor: TensorEntry, parameter: BaseTensor, structure: Structure) -> None:
    rows = len(tensor.shape) == 2 and tensor.shape[1:] == parameter.shape[1:] and tensor.shape != parameter.shape
    (structure.resized if rows else structure.copies).append((tensor, parameter))


def covers(
    rest: str, config: AdapterConfig, base: BaseFingerprint, modules: BaseModules, names: Collection[str]
) -> bool:
    """Whether PEFT saves a parameter. names: of the modules that it saves."""
    path = rest.rpartition(".")[0]
    if is_saved(path, names):
        return True
    # With ensure_weight_tying PEFT saves the tied partner of a saved embedding too.
    pair = modules.holds_vocabulary(path)
    tied = bool(modules.sharing.groups) or base.tied
    return tied and pair and config.on("ensure_weight_tying") and any(map(modules.holds_vocabulary, names))


def check_saved_complete(modules: BaseModules, structure: Structure, report: CheckReport) -> None:
    """Check that saved modules are complete: PEFT fails if one of their parameters is missing in the file."""
    held = {tensor.name[len(PREFIX) :] for tensor in structure.saved}
    held |= {found.name for name in held if (found := modules.resolve_parameter(name)) is not None}
    spelled = spelling(structure, modules)
    _check_saved_tied(modules, structure, spelled, held, report)
    for name, tensor in modules.parameters.items():
        if tensor.name == name and is_saved(spelled(name.rpartition(".")[0]), structure.names) and name not in held:
            _report_missing(report, name, "which is", parameter=name)


def _check_saved_tied(
    modules: BaseModules,
    structure: Structure,
    spelled: Callable[[str], str],
    held: Collection[str],
    report: CheckReport,
) -> None:
    """Check that saved modules that share the weight of another are in the file: PEFT saves and needs their copy."""
    found = {owner.path for name in held if (owner := modules.resolve(name.rpartition(".")[0])) is not None}
    for path, module in modules.modules.items():
        own = module.weight is None or module.weight.name.rpartition(".")[0] == path
        if not own and path not in found and is_saved(spelled(path), structure.names):
            _report_missing(report, path, "whose weight is", parameter=f"{path}.weight")


def _report_missing(report: CheckReport, where: str, what: str, *, parameter: str) -> None:
    report.add(
        "missing-tensor",
        f"modules_to_save of {CONFIG} covers {where}, {what} missing in the file.",
        where=where,
        expected=f"{PREFIX}{parameter}",
        hint="Save the adapter again; a part of it is missing.",
    )


def check_saved(
    tensor: TensorEntry,
    rest: str,
    config: AdapterConfig,
    modules: BaseModules,
    structure: Structure,
    new: Collection[str],
    report: CheckReport,
) -> None:
    if not check_dtype(tensor, report):
        return
    path, _, leaf = rest.rpartition(".")
    parameter = modules.resolve_parameter(rest)
    owner = modules.resolve(path)
    if parameter is None and leaf == "weight" and owner is not None:
        parameter = owner.weight
    if parameter is None:
        heads = OWN_HEADS.get(config.task_type or "", ())
        if rest in new or (owner is None and rest.partition(".")[0] in heads):
            return  # a new head of this task: the base has none that it could overwrite
        report.add(
            "module-not-in-base",
            f"The tensor {tensor.name} belongs to modules_to_save, but the base has no parameter {rest}.",
            where=tensor.name,
            hint="Check that this adapter was trained on this base.",
        )
        return
    if tensor.shape != parameter.shape:
        rows = leaf == "weight" and modules.holds_vocabulary(path)
        if rows and tensor.shape[1:] == parameter.shape[1:]:
            structure.resized.append((tensor, parameter))
        else:
            wrong_shape(report, tensor, f"{list(parameter.shape)}, the full shape of {rest} in the base")


def check_resized(structure: Structure, base_name: str, report: CheckReport) -> None:
    """Report embeddings and output layers with other rows than the base's: one finding, with the command that makes the
    resized base."""
    if not structure.resized:
        return
    tensor, parameter = structure.resized[0]
    rows, count = tensor.shape[0], len(structure.resized)
    more = f", and so have {count - 1} more tensors" if count > 1 else ""
    saved = [
        unwrapped(other.name).wrapper == "original_module" or other in structure.saved for other, _ in structure.resized
    ]
    kept = not all(saved)  # copies, which must equal the base's rows
    given = " --rows adapter_model.safetensors" if kept else ""
    name = base_name or "BASE"
    report.add(
        "vocabulary-rows",
        f"The tensor {tensor.name} has {rows} rows{more}; the base's vocabulary has {parameter.shape[0]}.",
        where=tensor.name,
        found=str(rows),
        expected=str(parameter.shape[0]),
        hint=f"If the vocabulary was resized in training: `lora-reg base resize {name} --vocab {rows}{given} "
        f"--to {name}-{rows}`, and push with that base.",
    )


def check_head(head: Headed, report: CheckReport) -> None:
    for part in head.lost:
        report.add(
            "missing-tensor",
            f"{head.architecture} has {part}, which PEFT saves with adapters of this task; the file does not have it.",
            where=part,
            expected=f"{PREFIX}{part}",
            hint="Save the adapter again; a part of it is missing.",
        )
    unsaved = [part for part in head.unsaved if part not in head.lost]
    if unsaved:
        report.add(
            "head-not-saved",
            f"{head.architecture} has {', '.join(unsaved[:4])}, which neither the adapter nor the base has: loaders "
            "initialize it at random, and the adapter cannot be merged.",
            severity="warning",
            where=unsaved[0],
            hint="Train again with the module in modules_to_save.",
        )


def check_names(config: AdapterConfig, structure: Structure, modules: BaseModules, report: CheckReport) -> None:
    """Warn of names in modules_to_save that match neither the file nor the base. Of the heads that PEFT adds by itself,
    a model has one."""
    own = OWN_HEADS.get(config.task_type or "", ())
    saved = {unwrapped(tensor.name.removeprefix(PREFIX)).name.rpartition(".")[0] for tensor in structure.saved}
    for name in list(dict.fromkeys(config.modules_to_save))[:_MOST_NAMES]:
        known = name in own or any(is_saved(path, (name,)) for path in (*saved, *modules.modules, *modules.containers))
        if not known:
            report.add(
                "saved-module-unknown",
                f"modules_to_save of {CONFIG} names {name!r}, which neither the file nor the base has.",
                severity="warning",
                file=CONFIG,
                where="modules_to_save",
                found=name[:200],
                hint="If the module was trained, save the adapter again: its weights are missing.",
            )
