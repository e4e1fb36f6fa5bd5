"""An adapter and the base that it is merged into, as seen by the rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NoReturn

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.part_of_base import place_of_part
from lora_contract.adapter.scaling import Scales, scales
from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModule, BaseModules
from lora_contract.quantized import method_of
from lora_contract.tensors import FLOAT_DTYPES, TensorEntry
from lora_kernels.checkpoint.folders import AdapterInput
from lora_kernels.checkpoint.records import Factor
from lora_kernels.quantized.reading import METHODS
from lora_kernels.types.matching.change import Change, Matches, TiedCopy
from lora_kernels.types.matching.tied import Tie


@dataclass(frozen=True)
class View:
    """shared: the adapter's model-level tensors, by name without `base_model.`. tie: of the base's output layer to its
    embedding. ignored: names of adapter tensors without an effect, filled during matching."""

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
        """The scale of an additive update, including the adapter's weight in the merge."""
        return scale * self.adapter.weight

    @cached_property
    def _unread(self) -> str | None:
        """The base's method of quantization, if it has one that is not read."""
        method = method_of(self.base.config)
        return method if method and method not in METHODS else None

    @cached_property
    def scale(self) -> Scales:
        return scales(self.config)

    @cached_property
    def peft_version(self) -> tuple[int, int] | None:
        """Major and minor version of the PEFT that saved the adapter; None if not in the config (before 0.18)."""
        parts = (self.config.peft_version or "").split(".")
        if len(parts) < 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts[:2]):
            return None
        return int(parts[0]), int(parts[1])

    @cached_property
    def stores_transposed(self) -> bool:
        return any(module.transposed for module in self.modules.modules.values())

    def module(self, path: str, entry: TensorEntry, *kinds: str) -> tuple[BaseModule, BaseTensor]:
        """The base's module at a path and the tensor of its weight. kinds: kinds that the type can be merged into.

        Raises RegistryError `rejected` if it is missing, `unsupported` for other kinds and for quantized weights.
        """
        found = self.modules.resolve(path)
        if found is None and self._unread is not None:
            raise RegistryError(
                "unsupported",
                f"{entry.name} adapts {path}, of which the base has no plain weight: it is quantized by "
                f"{self._unread}, which is not read here.",
                hint=f"Merge onto the full-precision base; read are {', '.join(METHODS)}.",
                module=path,
            )
        if found is None:
            raise rejected(f"{entry.name} adapts {path}, which the base does not have{self.why(path)}", entry)
        if found.kind not in kinds:
            unsupported(f"{self.config.peft_type} on a module of kind {found.kind}", path)
        if found.weight is None:
            by = f" by {self._unread}, which is not read here" if self._unread is not None else ""
            raise RegistryError(
                "unsupported",
                f"{path} is quantized in the base{by}; only floating-point weights can be merged into.",
                hint="Merge onto the full-precision base.",
                module=path,
            )
        return found, self.untied(found, found.weight)

    def why(self, path: str) -> str:
        """The end of a sentence that says why the base lacks a module; empty if nothing is known of it."""
        found = self.modules.naming.why(path)
        if found is None and (prefix := place_of_part(path, self.modules)) is not None:
            found = (
                f"it has such a module under {prefix}; if the adapter was trained on that part, say so with --prefix"
            )
        return "" if found is None else f": {found}"

    def untied(self, module: BaseModule, weight: BaseTensor) -> BaseTensor:
        """The tensor to which a change of the module's weight applies: each of two tied layers has its own."""
        tie = self.tie
        if tie is None:
            return weight
        return tie.head.weight if tie.is_head(module) else tie.embedding.weight if tie.is_embedding(module) else weight

    def with_tied(self, change: Change, copies: Sequence[tuple[Factor, TensorEntry]] = ()) -> Matches:
        """The change of an embedding, with the same change of the output layer tied to it; other changes alone.

        copies: factors of the change, each with its tied copy of the output layer, which is only compared.
        """
        tie = self.tie
        if tie is None or change.tensor != tie.embedding.weight.name:
            return [change]
        for original, entry in copies:
            if entry.shape not in (original.shape, original.shape[::-1]):
                raise rejected(f"{entry.name} has the shape {shape(entry)}, but is tied to {original.name}", entry)
            self.ignored.append(entry.name)
        tied = replace(change, copies=tuple(TiedCopy(original, factor(entry)) for original, entry in copies))
        return [tied, replace(tied, tensor=tie.head.weight.name)]


def split_tied(view: View, groups: Sequence[ModuleTensors]) -> tuple[list[ModuleTensors], ModuleTensors | None]:
    """The groups without that of the output layer, and that one, if both it and the tied embedding have a group."""
    tie = view.tie
    found = {group.path: view.modules.resolve(group.path) for group in groups}
    if tie is None or all(module is None or not tie.is_embedding(module) for module in found.values()):
        return list(groups), None
    heads = [group for group in groups if (module := found[group.path]) is not None and tie.is_head(module)]
    if len(heads) != 1:
        return list(groups), None
    return [group for group in groups if group is not heads[0]], heads[0]


def factor(entry: TensorEntry) -> Factor:
    """The record of a tensor. Raises RegistryError `rejected` unless it is floating-point."""
    if entry.dtype not in FLOAT_DTYPES:
        raise rejected(
            f"{entry.name} has the dtype {entry.dtype}; expected one of {', '.join(sorted(FLOAT_DTYPES))}", entry
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
        f"Merging {name} is not supported; the adapter uses it for {module}" + (f": {why}." if why else "."),
        type=name,
        module=module,
    )
