"""A base whose output layer is tied to its input embedding, and changes of either.

Although the two layers are one tensor, an adapter is trained on one of them, or on both separately; the update is one
of both only if PEFT ties the adapter's tensors too (`ensure_weight_tying`, trainable tokens). Therefore each layer
counts as a tensor of its own during matching, and the result is untied if their updates differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModule, BaseModules
from lora_contract.sharing import KEY, Group, Member, nested, vocabularies
from lora_kernels.types.forms.replace import Replacement
from lora_kernels.types.matching.change import Change

# A nested config that may have the setting, although the class does not read it there.
_TEXT: Final = "text_config"


@dataclass(frozen=True)
class Layer:
    """One of the two layers. weight: in the base's files or, if missing there, the other's bytes under its name."""

    paths: tuple[str, ...]
    weight: BaseTensor


@dataclass(frozen=True)
class Tie:
    """absent: the weight that is missing in the base's files, None if they have both. companions: further tensors that
    an untied checkpoint needs. configs: paths of the nested configs with the setting."""

    embedding: Layer
    head: Layer
    absent: BaseTensor | None
    companions: tuple[BaseTensor, ...] = ()
    configs: tuple[str, ...] = ("",)

    def is_head(self, module: BaseModule) -> bool:
        return module.path in self.head.paths

    def is_embedding(self, module: BaseModule) -> bool:
        return module.path in self.embedding.paths

    @property
    def written(self) -> tuple[BaseTensor, ...]:
        """The tensors that an untied result has in addition to the base's."""
        return (*((self.absent,) if self.absent is not None else ()), *self.companions)


def tie_of(modules: BaseModules) -> Tie | None:
    """The tie of a base; None if its two layers are not tied, or cannot be untied."""
    shared = modules.sharing
    pairs = [group for group in shared.groups if group.member(shared.output) is not None and len(group.members) == 2]
    if len(pairs) != 1 or shared.patterns or shared.unknown is not None:
        return None
    pair = pairs[0]
    others = [group for group in shared.groups if group is not pair]
    if not pair.by or any(len(group.members) != 2 for group in others):
        return None
    head = pair.member(shared.output)
    embedding = next(member for member in pair.members if member is not head)
    if head is None or len(pair.held.shape) != 2:
        return None
    absent = [_named(pair, member) for member in pair.members if member.tensor is None]
    companions = [_named(group, member) for group in others for member in group.members if member.tensor is None]
    configs = {"", *(path for group in shared.groups for path in group.by)}
    return Tie(
        embedding=_layer(pair, embedding),
        head=_layer(pair, head),
        absent=absent[0] if absent else None,
        companions=tuple(companions),
        configs=tuple(sorted(configs)),
    )


def refuse_shared(changes: Iterable[Change], base: BaseFingerprint, modules: BaseModules, tie: Tie | None) -> None:
    """Raise RegistryError `unsupported` if a changed tensor is shared with other parameters, or may be."""
    shared = modules.sharing
    separable = {tie.embedding.weight.name, tie.head.weight.name} if tie is not None else set()
    sharing = {
        member.tensor.name: group for group in shared.groups for member in group.members if member.tensor is not None
    }
    sizes = vocabularies(base.config) if shared.unknown is not None else set()
    tensors = base.by_name()
    found = modules.input_embedding() if shared.computed else None
    computed = found.path if found is not None else None
    for change in changes:
        name = change.tensor
        if not isinstance(change.update, Replacement):
            _refuse_uncalled(name, change, modules, computed)
        if name in separable:
            continue
        group = sharing.get(name)
        if group is not None:
            others = [member.name for member in group.members if member.stored != name]
            raise _refused(name, change, ", ".join(others), base.architecture)
        if shared.matches({name, f"{change.module}.weight", f"{change.module}.bias"}):
            raise _refused(name, change, "a layer that is used more than once", base.architecture)
        tensor = tensors.get(name)
        if shared.unknown is not None and tensor is not None and _vocabulary(tensor, modules, sizes):
            raise RegistryError(
                "unsupported",
                f"{name} may share its weight with another layer: it is unknown what is tied in {shared.unknown}; a "
                "merge might change both layers, which would not give the trained model.",
                hint=f"Serve the adapter unmerged, or, if nothing is tied, register a base whose config.json has "
                f'"{KEY}": false.',
                module=change.module,
                tensor=name,
            )


def _refuse_uncalled(name: str, change: Change, modules: BaseModules, computed: str | None) -> None:
    """Refuse modules that the model does not call, or that return more than their weight: PEFT changes the output of a
    module, which is not equivalent to a change of the weight there."""
    path = name.removesuffix(".weight")
    why = None
    if computed is not None and path == computed:
        why = "returns more than the rows of its weight, such as their norm"
    elif modules.sharing.bypasses(change.module) or modules.sharing.bypasses(path):
        why = "is never called by the model, which reads its weight: the adapter has no effect there unmerged"
    if why is not None:
        raise RegistryError(
            "unsupported",
            f"{change.module} {why}; the merged model would differ from the trained one.",
            hint="Serve the adapter unmerged, or train the module in modules_to_save.",
            module=change.module,
            tensor=name,
        )


def untied_config(config: dict[str, Any], paths: Iterable[str] = ("",)) -> dict[str, Any]:
    """The config of the untied model. paths: nested configs with the setting."""
    result = {**config, KEY: False}
    for path in sorted({*paths, _TEXT} - {""}):
        if nested(config, path):
            result = _set(result, path.split("."))
    return result


def _set(config: dict[str, Any], path: list[str]) -> dict[str, Any]:
    if not path:
        return {**config, KEY: False}
    return {**config, path[0]: _set(config[path[0]], path[1:])}


def _layer(group: Group, member: Member) -> Layer:
    return Layer(member.paths, member.tensor if member.tensor is not None else _named(group, member))


def _named(group: Group, member: Member) -> BaseTensor:
    return msgspec.structs.replace(group.held, name=member.stored)


def _vocabulary(tensor: BaseTensor, modules: BaseModules, sizes: set[int]) -> bool:
    """Whether a tensor, by its shape or module, belongs to an embedding or output layer."""
    path = tensor.name.rpartition(".")[0]
    module = modules.modules.get(path)
    named = module is not None and (module.kind == "embedding" or modules.is_output(path))
    return named or bool(sizes.intersection(tensor.shape))


def _refused(name: str, change: Change, others: str, architecture: str) -> RegistryError:
    return RegistryError(
        "unsupported",
        f"{change.module} shares the weight {name} with {others}; it is unknown how to untie them in the architecture "
        f"{architecture}: a merge would change all of them, which would not give the trained model.",
        hint="Serve the adapter unmerged, or untie the base first and register the result as a new base.",
        module=change.module,
        tensor=name,
    )
