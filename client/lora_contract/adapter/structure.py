"""Classification of every tensor of the file, against the names and shapes that type, targets and base allow.

PEFT loads any tensor that is named like a base parameter over the base, silently and permanently. So names are checked
against an allow-list: a tensor that cannot be classified is refused.
"""

from __future__ import annotations

from typing import Final

import msgspec

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.groups import AdaptedModule, check_dtype, check_group, wrong_shape
from lora_contract.adapter.names import PREFIX, ancestors, leaf_of
from lora_contract.adapter.report import CONFIG, CheckReport
from lora_contract.adapter.scaling import Scales
from lora_contract.adapter.slots import AdapterType
from lora_contract.adapter.sorting import place_of
from lora_contract.adapter.types import TYPES
from lora_contract.adapter.virtual_tokens import prompt_fault
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.modules import BaseModule, BaseModules
from lora_contract.tensors import Header, TensorEntry

_HEADS: Final = {
    "SEQ_CLS": ("score", "classifier"),
    "TOKEN_CLS": ("score", "classifier"),
    "QUESTION_ANS": ("qa_outputs",),
}


class Structure(msgspec.Struct):
    """Every accepted tensor by what it is.

    groups: by (module path, nesting). saved: full tensors of modules_to_save. copies: tensors that must equal the
    named base tensor bit by bit. biases: trained biases that replace the base's. tokens: rows that replace rows, of the
    embeddings in token_modules.
    """

    groups: dict[tuple[str, int], AdaptedModule] = {}
    saved: list[TensorEntry] = []
    copies: list[tuple[TensorEntry, BaseTensor]] = []
    biases: list[TensorEntry] = []
    tokens: list[TensorEntry] = []
    token_modules: list[str] = []
    globals_: list[TensorEntry] = []


def build(
    config: AdapterConfig,
    header: Header,
    base: BaseFingerprint,
    modules: BaseModules,
    scale: Scales,
    report: CheckReport,
) -> Structure:
    """Classify every tensor, then check the tensors of each module together. Faults are added to the report."""
    kind = TYPES[config.peft_type]
    structure = Structure()
    for tensor in header.tensors:
        _place(tensor, config, kind, base, modules, structure, report)
    for group in structure.groups.values():
        if group.module is not None:
            check_group(group, config, kind, base, scale(group.path).r, report)
    _check_saved_complete(config, modules, structure, report)
    if kind.prompt:
        embedding = modules.input_embedding()
        width = None if embedding is None else embedding.in_
        fault = prompt_fault(config, {tensor.name: tensor.shape for tensor in structure.globals_}, width, base.config)
        if fault is not None:
            report.add(
                "shape-mismatch",
                f"The virtual tokens do not fit the base and the config: {fault}.",
                where="prompt_embeddings",
                found=fault,
                hint="Check that this adapter was trained on this base, and push the config saved with it.",
            )
    return structure


def _place(
    tensor: TensorEntry,
    config: AdapterConfig,
    kind: AdapterType,
    base: BaseFingerprint,
    modules: BaseModules,
    structure: Structure,
    report: CheckReport,
) -> None:
    place = place_of(tensor.name, config.peft_type)
    if place == "shared":
        structure.globals_.append(tensor)
        check_dtype(tensor, report, integer=kind.integer_globals)
        return
    if not tensor.name.startswith(PREFIX):
        report.add(
            "unknown-tensor",
            f"The tensor {tensor.name} does not begin with {PREFIX!r}, as PEFT writes the tensors of a "
            f"{config.peft_type} adapter; loaders would silently skip it.",
            where=tensor.name,
            expected=f"{PREFIX}<module>.<suffix>",
            hint="Save the adapter with PEFT's save_pretrained and push that.",
        )
        return
    rest = tensor.name[len(PREFIX) :]
    if place != "other":
        path, nested, suffix = place
        module = modules.resolve(path)
        if module is not None and config.task_type == "CAUSAL_LM" and module.path.endswith(f".{path}"):
            module = None  # named as in the model without its head: on this base the loader would skip it in silence
        if module is None and not (kind.prefix and modules.has_container(path)):
            report.add(
                "module-not-in-base",
                f"The tensor {tensor.name} adapts the module {path}, which the base does not have.",
                where=tensor.name,
                found=path,
                expected="a module of the base",
                hint="Check that this adapter was trained on this base.",
            )
            return
        if suffix.endswith("trainable_tokens_delta"):
            _place_tokens(tensor, path, module, config, base, structure, report)
            return
        group = structure.groups.setdefault((path, nested), AdaptedModule(path, nested, {}, module))
        group.tensors[suffix] = tensor
        return
    if _is_saved(rest, config, base, modules):
        structure.saved.append(tensor)
        _check_saved(tensor, rest, config, modules, report)
        return
    _place_base_parameter(tensor, rest, config, modules, structure, report)


def _place_base_parameter(
    tensor: TensorEntry,
    rest: str,
    config: AdapterConfig,
    modules: BaseModules,
    structure: Structure,
    report: CheckReport,
) -> None:
    """Classify a tensor that is named like a parameter of the base: a copy, a trained bias, or an attack."""
    plain = rest.replace(".base_layer.", ".")
    parameter = modules.resolve_parameter(plain)
    owner = modules.resolve(plain.rpartition(".")[0])
    leaf = leaf_of(plain)
    if parameter is None and leaf == "weight" and owner is not None:
        parameter = owner.weight  # a tied module has no tensor of its own
    if parameter is None:
        report.add(
            "unknown-tensor",
            f"The tensor {tensor.name} does not belong to a {config.peft_type} adapter with these targets.",
            where=tensor.name,
            hint="Save the adapter with PEFT's save_pretrained and push that.",
        )
        return
    wrapped = plain != rest
    if leaf == "bias" and (config.bias == "all" or (config.bias.endswith("_only") and wrapped)):
        structure.biases.append(tensor)
        if len(structure.biases) == 1:
            report.add(
                "replaces-biases",
                f"{CONFIG} has bias = {config.bias!r}: loaders permanently overwrite the base's biases.",
                severity="warning",
                where="bias",
                found=config.bias,
                expected="none",
                hint="Serve it from a process of its own, or train with bias='none'.",
            )
        check_dtype(tensor, report)
        if tensor.shape != parameter.shape:
            wrong_shape(report, tensor, f"{list(parameter.shape)} as in the base")
        return
    path = plain.rpartition(".")[0]
    embedding = leaf == "weight" and modules.holds_vocabulary(path)
    if wrapped or embedding:
        structure.copies.append((tensor, parameter))
        return
    report.add(
        "overwrites-base",
        f"The tensor {tensor.name} is named like the base's own parameter {parameter.name} and would overwrite it in "
        "every process that shares the base.",
        where=tensor.name,
        expected="only tensors of the adapter",
        hint="Remove the tensor; if the module was trained in full, name it in modules_to_save.",
    )


def _is_saved(rest: str, config: AdapterConfig, base: BaseFingerprint, modules: BaseModules) -> bool:
    names = config.modules_to_save
    if not names:
        return False
    if any(path.endswith(name) for path in ancestors(rest) for name in names):
        return True
    # With ensure_weight_tying PEFT saves the tied partner of a saved embedding too.
    path = rest.rpartition(".")[0]
    pair = modules.holds_vocabulary(path)
    tied = bool(modules.sharing.groups) or base.tied
    return tied and pair and config.on("ensure_weight_tying") and any(map(modules.holds_vocabulary, names))


def _check_saved_complete(
    config: AdapterConfig, modules: BaseModules, structure: Structure, report: CheckReport
) -> None:
    """Check that saved modules are complete: PEFT fails if one of their parameters is missing in the file."""
    if not config.modules_to_save:
        return
    held = {tensor.name[len(PREFIX) :] for tensor in structure.saved}
    held |= {found.name for name in held if (found := modules.resolve_parameter(name)) is not None}
    for name in modules.parameters:
        wanted = any(path.endswith(saved) for path in ancestors(name) for saved in config.modules_to_save)
        if wanted and name not in held:
            report.add(
                "missing-tensor",
                f"modules_to_save of {CONFIG} covers {name}, which is missing in the file.",
                where=name,
                expected=f"{PREFIX}{name}",
                hint="Save the adapter again; a part of it is missing.",
            )


def _check_saved(
    tensor: TensorEntry, rest: str, config: AdapterConfig, modules: BaseModules, report: CheckReport
) -> None:
    if not check_dtype(tensor, report):
        return
    path, _, leaf = rest.rpartition(".")
    parameter = modules.resolve_parameter(rest)
    owner = modules.resolve(path)
    if parameter is None and leaf == "weight" and owner is not None:
        parameter = owner.weight
    if parameter is None:
        heads = _HEADS.get(config.task_type or "", ())
        if owner is None and rest.partition(".")[0] in heads:
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
            report.add(
                "vocabulary-rows",
                f"The tensor {tensor.name} has {tensor.shape[0]} rows; the base's vocabulary has {parameter.shape[0]}.",
                where=tensor.name,
                found=str(tensor.shape[0]),
                expected=str(parameter.shape[0]),
                hint="Register the base with the resized vocabulary, or train without adding tokens.",
            )
        else:
            wrong_shape(report, tensor, f"{list(parameter.shape)}, the full shape of {rest} in the base")


def _place_tokens(
    tensor: TensorEntry,
    path: str,
    module: BaseModule | None,
    config: AdapterConfig,
    base: BaseFingerprint,
    structure: Structure,
    report: CheckReport,
) -> None:
    structure.tokens.append(tensor)
    structure.token_modules.append(path)
    if not check_dtype(tensor, report):
        return
    tokens = config.trainable_tokens
    indices = tokens
    if isinstance(tokens, dict):
        named = [items for name, items in tokens.items() if path == name or path.endswith(f".{name}")]
        indices = named[0] if named else None
    if not isinstance(indices, list):
        report.add(
            "not-targeted",
            f"The tensor {tensor.name} has token rows, but {CONFIG} has no token indices for {path}.",
            where=tensor.name,
        )
        return
    width = None if module is None else module.in_
    if len(tensor.shape) != 2 or tensor.shape[0] != len(indices) or (width is not None and tensor.shape[1] != width):
        wrong_shape(report, tensor, f"[{len(indices)}, {width}]: a row for each of the token indices")
    rows = module.out if module is not None and module.out is not None else base.embedding_rows
    if rows is not None and indices and max(indices) >= rows:
        report.add(
            "vocabulary-rows",
            f"{CONFIG} trains the token {max(indices)}, but the base's vocabulary has {rows} rows.",
            file=CONFIG,
            where=tensor.name,
            found=str(max(indices)),
            expected=f"less than {rows}",
        )
