"""An adapter beside the base that it is merged into, as the rooms of all types see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NoReturn

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.scaling import Scales, scales
from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModule, BaseModules
from lora_contract.tensors import FLOAT_DTYPES, TensorEntry
from lora_kernels.checkpoint.folders import AdapterInput
from lora_kernels.checkpoint.records import Factor
from lora_kernels.types.matching.change import Change, Matches, TiedCopy
from lora_kernels.types.matching.tied import Tie


@dataclass(frozen=True)
class View:
    """shared: the adapter's model-level tensors by name without `base_model.`. tie: of the base's output layer to its
    embedding. ignored: names of tensors that are copies, filled while matching."""

    adapter: AdapterInput
    base: BaseFingerprint
    modules: BaseModules
    shared: Mapping[str, TensorEntry]
    tie: Tie | None = None
    ignored: list[str] = field(default_factory=list)

    @property
    def config(self) -> AdapterConfig:
        return self.adapter.config

    def scaled(self, scale: float = 1.0) -> float:
        """The scale of an update that adds: times the adapter's weight in the merge."""
        return scale * self.adapter.weight

    @cached_property
    def scale(self) -> Scales:
        return scales(self.config)

    @cached_property
    def peft_version(self) -> tuple[int, int] | None:
        """Of the PEFT that saved the adapter, major and minor; None if the config does not say (before 0.18)."""
        parts = (self.config.peft_version or "").split(".")
        if len(parts) < 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts[:2]):
            return None
        return int(parts[0]), int(parts[1])

    @cached_property
    def stores_transposed(self) -> bool:
        return any(module.transposed for module in self.modules.modules.values())

    def module(self, path: str, entry: TensorEntry, *kinds: str) -> tuple[BaseModule, BaseTensor]:
        """The base's module of that path and the tensor of its weight. kinds: that the type can be merged into.

        Raises RegistryError `rejected` if there is none, `unsupported` for another kind and for a weight that is
        stored quantized.
        """
        found = self.modules.resolve(path)
        if found is None:
            raise rejected(f"{entry.name} adapts {path}, which the base does not have", entry)
        if found.kind not in kinds:
            unsupported(f"{self.config.peft_type} on a module of kind {found.kind}", path)
        if found.weight is None:
            raise RegistryError(
                "unsupported",
                f"{path} is stored quantized in the base; a merge adds to floating-point weights only.",
                hint="Merge onto the full-precision base.",
                module=path,
            )
        return found, self.untied(found, found.weight)

    def untied(self, module: BaseModule, weight: BaseTensor) -> BaseTensor:
        """The tensor that a change of the module's weight is made to: each of two tied layers has its own."""
        tie = self.tie
        if tie is None:
            return weight
        return tie.head.weight if tie.is_head(module) else tie.embedding.weight if tie.is_embedding(module) else weight

    def both(self, change: Change, copies: Sequence[tuple[Factor, TensorEntry]] = ()) -> Matches:
        """A change of an embedding is one of the output layer that is tied to it, too; any other change stays as it is.

        copies: factors of the change, each with the output layer's own tensor that repeats it. The latter are ignored,
        once compared.
        """
        tie = self.tie
        if tie is None or change.tensor != tie.embedding.weight.name:
            return [change]
        for original, entry in copies:
            if entry.shape not in (original.shape, original.shape[::-1]):
                raise rejected(f"{entry.name} has the shape {shape(entry)}; it should repeat {original.name}", entry)
            self.ignored.append(entry.name)
        tied = replace(change, copies=tuple(TiedCopy(original, factor(entry)) for original, entry in copies))
        return [tied, replace(tied, tensor=tie.head.weight.name)]


def split_tied(view: View, groups: Sequence[ModuleTensors]) -> tuple[list[ModuleTensors], ModuleTensors | None]:
    """The groups without the output layer's, and that one, if both it and the tied embedding have one."""
    tie = view.tie
    found = {group.path: view.modules.resolve(group.path) for group in groups}
    if tie is None or all(module is None or not tie.is_embedding(module) for module in found.values()):
        return list(groups), None
    heads = [group for group in groups if (module := found[group.path]) is not None and tie.is_head(module)]
    if len(heads) != 1:
        return list(groups), None
    return [group for group in groups if group is not heads[0]], heads[0]


def factor(entry: TensorEntry) -> Factor:
    """Raises RegistryError `rejected` where the tensor does not hold floating-point numbers."""
    if entry.dtype not in FLOAT_DTYPES:
        raise rejected(
            f"{entry.name} has the type {entry.dtype}; expected one of {', '.join(sorted(FLOAT_DTYPES))}", entry
        )
    return Factor.of(entry)


def shape(tensor: TensorEntry | BaseTensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "scalar"


def rejected(what: str, entry: TensorEntry) -> RegistryError:
    return RegistryError(
        "rejected",
        f"{what}.",
        hint="Merge an adapter that fits this base; `lora-reg push --dry-run` lists all faults.",
        tensor=entry.name,
    )


def unsupported(name: str, module: str, why: str = "") -> NoReturn:
    raise RegistryError(
        "unsupported",
        f"Merging {name} is not supported; the adapter adapts {module} that way" + (f": {why}." if why else "."),
        type=name,
        module=module,
    )
