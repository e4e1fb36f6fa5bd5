"""The parts of an adapter on a pipeline of diffusers, each an adapter of one component.

Such an adapter is one of two: what PEFT saves for a component, or a file of parts, whose tensors are named as diffusers
names them (`unet.down_blocks.0….lora_A.weight`), so that `load_lora_weights` reads it as it lies. In the config of the
second, names and keys of patterns have the component in front too (`unet.to_q`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from lora_contract import canonical
from lora_contract.adapter.config import AdapterConfig, parse_config
from lora_contract.adapter.names import PREFIX
from lora_contract.adapter.sorting import modules_in
from lora_contract.base import BaseFingerprint
from lora_contract.components import component, component_names
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModules, modules_of
from lora_contract.tensors import Header, TensorEntry

METADATA: Final = "lora_adapter_metadata"
"""Key of a safetensors header under which diffusers keeps the config of each part."""
_LISTS: Final = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")
_PATTERNS: Final = ("rank_pattern", "alpha_pattern")


class Part(NamedTuple):
    """An adapter of one model. component: its name in the pipeline; empty if the base is no pipeline."""

    component: str
    base: BaseFingerprint
    config: AdapterConfig
    header: Header

    @property
    def prefix(self) -> str:
        """What stands before the names of the component's tensors in the fingerprint of the pipeline."""
        return f"{self.component}." if self.component else ""


def parts_of(base: BaseFingerprint, config: AdapterConfig, header: Header) -> tuple[Part, ...]:
    """Split an adapter into the adapters of single models; on a base that is one model, it is the only part.

    Raises RegistryError `rejected` if it cannot be told which component an adapter is for.
    """
    names = component_names(base)
    if not names:
        return (Part("", base, config, header),)
    found = held_components(header)
    if found:
        unknown = sorted(found - set(names))
        if unknown:
            raise _refused(
                f"The adapter has tensors for the component {unknown[0]}, which the pipeline does not have; it has "
                f"{', '.join(names)}"
            )
        return tuple(_part(base, config, header, name, found) for name in sorted(found))
    name = _component_for(base, names, config, header)
    return (Part(name, component(base, name), config, header),)


def held_components(header: Header) -> frozenset[str]:
    """The components of a file whose tensors are named as diffusers does; empty for the names of PEFT."""
    if not header.tensors or any(tensor.name.startswith("base_model.") for tensor in header.tensors):
        return frozenset()
    return frozenset(tensor.name.partition(".")[0] for tensor in header.tensors)


def of_part(document: Mapping[str, Any], name: str, components: Collection[str]) -> dict[str, Any]:
    """The config of one part of an adapter_config.json. Raises RegistryError `rejected` for a pattern of targets."""
    others = set(components) - {name}
    made = dict(document)
    for key in _LISTS:
        value = made.get(key)
        if isinstance(value, str) and value.lower() != "all-linear":
            raise _refused(f"{key} of adapter_config.json is a pattern; an adapter of several components lists names")
        if isinstance(value, list):
            made[key] = list(_kept(value, name, others))
    for key in _PATTERNS:
        value = made.get(key)
        if isinstance(value, dict):
            made[key] = {kept: item for old, item in value.items() for kept in _kept([old], name, others)}
    return made


def _kept(values: Iterable[Any], name: str, others: Collection[str]) -> Iterable[str]:
    for value in values:
        if not isinstance(value, str):
            continue
        start = "^" if value.startswith("^") else ""
        head, _, rest = value.removeprefix("^").replace("\\.", ".", 1).partition(".")
        if rest and head == name:
            yield start + rest
        elif not rest or head not in others:
            yield value


def _part(base: BaseFingerprint, config: AdapterConfig, header: Header, name: str, found: Collection[str]) -> Part:
    own = parse_config(canonical.dumps(of_part(config.raw, name, found)))
    tensors = tuple(_peft_names(header.tensors, name))
    return Part(name, component(base, name), own, msgspec.structs.replace(header, tensors=tensors))


def _peft_names(tensors: Iterable[TensorEntry], name: str) -> Iterable[TensorEntry]:
    for tensor in tensors:
        if tensor.name.startswith(f"{name}."):
            yield msgspec.structs.replace(tensor, name=PREFIX + tensor.name[len(name) + 1 :])


def _component_for(base: BaseFingerprint, names: Collection[str], config: AdapterConfig, header: Header) -> str:
    """The component that PEFT saved an adapter for: by the class in its config, or by its modules."""
    candidates = {name: component(base, name) for name in names}
    of_class = [name for name, each in candidates.items() if config.model_class == each.architecture]
    if len(of_class) == 1:
        return of_class[0]
    fitting = [name for name in of_class or names if _fits(modules_of(candidates[name]), config, header)]
    if len(fitting) == 1:
        return fitting[0]
    which = "none of them has its modules" if not fitting else f"{' and '.join(fitting)} have its modules"
    raise _refused(
        f"The base is a pipeline of {', '.join(names)}, and adapter_config.json does not say which of them the adapter "
        f"is for: {which}"
    )


def _fits(modules: BaseModules, config: AdapterConfig, header: Header) -> bool:
    """Whether a model has all modules of an adapter, with these widths."""
    some = False
    for group in modules_in(config.peft_type, header):
        module = modules.resolve(group.path)
        if module is None:
            return False
        a = group.tensors.get("lora_A.weight")
        if a is not None and len(a.shape) > 1 and module.in_ is not None and a.shape[1] != module.in_:
            return False
        some = True
    return some


def _refused(why: str) -> RegistryError:
    return RegistryError(
        "rejected",
        f"{why}.",
        hint="Name the base of the component with --base: its folder can be added as a base of its own.",
    )
