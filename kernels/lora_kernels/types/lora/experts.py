"""LORA on expert parameters (`target_parameters`): pairs for all experts of a layer.

transformers keeps the experts of a layer as one parameter per projection; checkpoints store that parameter, or one
module per expert. Merge rules are those of peft 0.21.2 (`ParamWrapper`): wrappers of several parameters of a module are
nested in the order of the parameters, the first one innermost, with the most `base_layer` in its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from lora_contract.adapter.patterns import names_module
from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.base import BaseTensor
from lora_contract.modules import BaseModule
from lora_contract.tensors import TensorEntry
from lora_kernels.types.lora.stacks import ExpertPart, ExpertStack
from lora_kernels.types.matching.change import Change, Matches
from lora_kernels.types.matching.view import View, factor, rejected, shape, unsupported
from lora_kernels.types.updates import UpdateSpec

# Parameters of an expert module, in the order of their definition in models.
_ORDER: Final = (
    "gate_up_proj",
    "gate_up_proj_bias",
    "gate_proj",
    "up_proj",
    "up_proj_bias",
    "down_proj",
    "down_proj_bias",
)
# Parameter in memory, and the modules of one expert on disk whose rows it concatenates, for classes of which the table
# of renames has none.
_USUAL: Final = (
    ("gate_up_proj", ("w1", "w3")),
    ("down_proj", ("w2",)),
    ("gate_up_proj", ("gate_proj", "up_proj")),
    ("down_proj", ("down_proj",)),
)
# Models that store an expert's weight as (in, out) (`is_transposed` of transformers' expert modules).
_TRANSPOSED_TYPES: Final = frozenset({"gpt_oss", "aria", "aria_text", "openai_privacy_filter"})
_SWAPPED_SINCE: Final = (0, 19)


class _Part(NamedTuple):
    """A tensor on disk. rows: its rows [first, end) of the expert's weight in memory. expert: None for all experts."""

    tensor: BaseTensor
    rows: tuple[int, int]
    expert: int | None


class _Parameter(NamedTuple):
    """A parameter of the running model. rows, columns: of one expert's weight."""

    name: str
    experts: int
    rows: int
    columns: int
    parts: tuple[_Part, ...]


def match_stack(view: View, path: str, groups: Sequence[ModuleTensors]) -> Matches:
    """The changes by the pairs of one module of experts. groups: its nesting levels. Raises as `match_adapter` does."""
    found = view.modules.resolve(path)
    first = groups[0].first
    if found is None:
        raise rejected(f"{first.name} adapts {path}, which the base does not have{view.why(path)}", first)
    if found.kind != "experts":
        unsupported(f"nested LoRA on a module of kind {found.kind}", path)
    levels = sorted(groups, key=lambda group: -group.nested)
    parameters = _parameters(view, found)
    named = names_module(view.config.target_parameters)
    targeted = [name for name in _in_order(parameters, path) if named(f"{path}.{name}")]
    if len(targeted) != len(levels):
        raise rejected(
            f"{first.name}: the file has {len(levels)} pairs for {path}, but target_parameters of "
            f"adapter_config.json names {len(targeted)} of its parameters ({', '.join(sorted(parameters)) or 'none'})",
            first,
        )
    matches: Matches = []
    for name, group in zip(targeted, levels, strict=True):
        matches += _match_parameter(view, f"{path}.{name}", parameters[name], group)
    return matches


def _parameters(view: View, module: BaseModule) -> dict[str, _Parameter]:
    """The parameters of all experts by their names in memory, only three-dimensional ones."""
    known: dict[str, _Parameter] = {}
    if module.weight is not None:
        for name, tensor in view.modules.parameters.items():
            owner, _, leaf = name.rpartition(".")
            if owner == module.path and len(tensor.shape) == 3:
                experts, rows, columns = tensor.shape
                known[leaf] = _Parameter(leaf, experts, rows, columns, (_Part(tensor, (0, rows), None),))
        return known
    for name, leaves in view.modules.naming.experts or _USUAL:
        joined = _concatenated(view, module, name, leaves)
        if joined is not None:
            known[name] = joined
    return known


def _concatenated(view: View, module: BaseModule, name: str, leaves: tuple[str, ...]) -> _Parameter | None:
    """The weights of the modules of single experts, as one parameter; None if one is missing or sizes differ."""
    parts: list[_Part] = []
    sizes = set()
    for expert in range(module.experts):
        first = 0
        for leaf in leaves:
            tensor = view.modules.parameters.get(f"{module.path}.{expert}.{leaf}.weight")
            if tensor is None or len(tensor.shape) != 2:
                return None
            parts.append(_Part(tensor, (first, first + tensor.shape[0]), expert))
            sizes.add(tensor.shape)
            first += tensor.shape[0]
    if len(sizes) != 1:
        return None
    rows, columns = sizes.pop()
    return _Parameter(name, module.experts, rows * len(leaves), columns, tuple(parts))


def _in_order(parameters: dict[str, _Parameter], path: str) -> list[str]:
    unknown = sorted(set(parameters) - set(_ORDER))
    if unknown and len(parameters) > 1:
        unsupported("LoRA on expert parameters", path, f"the order of {', '.join(sorted(parameters))} is not known")
    return unknown or sorted(parameters, key=_ORDER.index)


def _match_parameter(view: View, path: str, parameter: _Parameter, group: ModuleTensors) -> Matches:
    a, b = _halves(group)
    scale = view.scale(path)
    experts = parameter.experts
    if a.shape[0] != b.shape[1] or a.shape[0] != experts * scale.r:
        raise rejected(
            f"{a.name} {shape(a)} and {b.name} {shape(b)} are not a pair for {experts} experts of rank {scale.r}", b
        )
    stack = ExpertStack(
        a=factor(a),
        b=factor(b),
        scale=view.scaled(scale.scale),
        experts=experts,
        transposed=_rows_are_inputs(view, path, parameter, a, b),
    )
    matches: Matches = []
    for part in parameter.parts:
        update: UpdateSpec = stack if part.expert is None else ExpertPart(stack, part.expert, part.rows)
        columns = parameter.columns if part.expert is None else None
        matches.append(Change(part.tensor.name, path, update, view.adapter.weight, columns))
    return matches


def _halves(group: ModuleTensors) -> tuple[TensorEntry, TensorEntry]:
    a, b = group.tensors.get("lora_A.weight"), group.tensors.get("lora_B.weight")
    first = group.first
    if a is None or b is None:
        missing = "lora_A" if a is None else "lora_B"
        raise rejected(f"{first.name} has no matching {missing}; half an update cannot be merged", first)
    if len(a.shape) != 2 or len(b.shape) != 2 or len(group.tensors) != 2:
        raise rejected(f"{first.name}: expected only a pair of matrices for experts", first)
    return a, b


def _rows_are_inputs(view: View, path: str, parameter: _Parameter, a: TensorEntry, b: TensorEntry) -> bool:
    """Whether the rows of an expert's weight are the inputs of A.

    Before 0.19 PEFT read every parameter as (experts, in, out), since then as (experts, out, in) except for modules
    marked as transposed (PEFT pull request 2521). If rows and columns differ, the shapes decide.
    """
    rows, columns = parameter.rows, parameter.columns
    inputs, outputs = a.shape[1], b.shape[0]
    fits = ((inputs, outputs) == (columns, rows), (inputs, outputs) == (rows, columns))
    if fits == (False, False):
        raise rejected(
            f"{a.name} and {b.name} give updates of {outputs} x {inputs}, but {path} has {parameter.experts} experts "
            f"of {rows} x {columns}",
            b,
        )
    if fits != (True, True):
        return fits[1]
    if view.base.model_type in _TRANSPOSED_TYPES:
        return True
    version = view.peft_version
    if version is None:
        unsupported(
            f"LoRA on {path}, whose experts are square",
            path,
            "adapter_config.json has no peft_version, and PEFT before 0.19 stored such factors transposed",
        )
    return version < _SWAPPED_SINCE
