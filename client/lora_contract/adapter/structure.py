"""Classification of every tensor of the file, against the names and shapes that type, targets and base allow.

PEFT loads any tensor that is named like a base parameter over the base, silently and permanently. So names are checked
against an allow-list: a tensor that cannot be classified is refused.
"""

from __future__ import annotations

from collections.abc import Collection

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.groups import AdaptedModule, check_dtype, check_group, wrong_shape
from lora_contract.adapter.names import PREFIX, leaf_of
from lora_contract.adapter.placed import Structure
from lora_contract.adapter.placing_saved import (
    add_copy,
    check_saved,
    check_saved_complete,
    covers,
    place_wrapped,
)
from lora_contract.adapter.report import CONFIG, CheckReport
from lora_contract.adapter.saved import OWN_HEADS, saved_modules
from lora_contract.adapter.scaling import Scales
from lora_contract.adapter.slots import AdapterType
from lora_contract.adapter.sorting import place_of
from lora_contract.adapter.types import TYPES
from lora_contract.adapter.virtual_tokens import prompt_fault
from lora_contract.base import BaseFingerprint
from lora_contract.heads import head_class
from lora_contract.modules import BaseModule, BaseModules
from lora_contract.tensors import Header, TensorEntry


def build(
    config: AdapterConfig,
    header: Header,
    base: BaseFingerprint,
    modules: BaseModules,
    scale: Scales,
    report: CheckReport,
    *,
    new: Collection[str] = (),
) -> Structure:
    """Classify every tensor, then check the tensors of each module together. Faults are added to the report.

    new: parameters of the head that the adapter brings, which the base does not have.
    """
    kind = TYPES[config.peft_type]
    structure = Structure(saved_modules(config))
    by_name = header.by_name()
    for tensor in header.tensors:
        if not place_wrapped(tensor, by_name, modules, structure, report):
            _place(tensor, config, kind, base, modules, structure, new, report)
    for group in structure.groups.values():
        if group.module is not None:
            check_group(group, config, kind, base, scale(group.path).r, report)
    check_saved_complete(modules, structure, report)
    _check_twice(structure, report)
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
    new: Collection[str],
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
        if module is not None and _whole_model(config, base) and module.path.endswith(f".{path}"):
            module = None  # named as in the model without its head: on this base the loader would skip it in silence
        if module is None and not (kind.prefix and modules.has_container(path)):
            why = modules.naming.why(path)
            report.add(
                "module-not-in-base",
                f"The tensor {tensor.name} adapts the module {path}, which the base does not have"
                + (f": {why}." if why is not None else "."),
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
    if covers(rest, config, base, modules, structure.names):
        structure.saved.append(tensor)
        check_saved(tensor, rest, config, modules, structure, new, report)
        return
    _place_base_parameter(tensor, rest, config, modules, structure, report)


def _check_twice(structure: Structure, report: CheckReport) -> None:
    """Report modules that the adapter has under two names: loaders know one of them."""
    first: dict[tuple[str, int], str] = {}
    for (path, nested), group in structure.groups.items():
        known = path if group.module is None else first.setdefault((group.module.path, nested), path)
        if known != path:
            report.add(
                "module-twice",
                f"The file adapts one module of the base under two names, {known} and {path}.",
                where=path,
                found=known,
                expected="one name for each module",
                hint="Keep the tensors of one name; a composition needs adapters with names of one version.",
            )


def _whole_model(config: AdapterConfig, base: BaseFingerprint) -> bool:
    """Whether PEFT wraps the class of the base for the adapter's task, so that names begin with its prefix."""
    task = config.task_type
    return task == "CAUSAL_LM" or (task in OWN_HEADS and head_class(base.architecture) is not None)


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
        add_copy(tensor, parameter, structure)
        return
    report.add(
        "overwrites-base",
        f"The tensor {tensor.name} is named like the base's own parameter {parameter.name} and would overwrite it in "
        "every process that shares the base.",
        where=tensor.name,
        expected="only tensors of the adapter",
        hint="Remove the tensor; if the module was trained in full, name it in modules_to_save.",
    )


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
