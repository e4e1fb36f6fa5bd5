"""An adapter beside the base that it is merged into, as the matchers of all types see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NoReturn

from lora_kernels.merging.delta import AdapterInput, Delta, Factor
from lora_reg.spec.adapter.config import AdapterConfig
from lora_reg.spec.adapter.scaling import Scales, scales
from lora_reg.spec.base import BaseFingerprint, BaseTensor
from lora_reg.spec.errors import RegistryError
from lora_reg.spec.modules import BaseModule, BaseModules, input_embedding
from lora_reg.spec.tensors import FLOAT_DTYPES, TensorEntry

# Layers that may share the storage of the input embedding.
_TIED_OUTPUTS: Final = frozenset({"lm_head", "embed_out", "output", "output_projection"})

Matches = list[tuple[str, Delta]]
"""(name of the base tensor, what is done to it)."""


@dataclass(frozen=True)
class Group:
    """The tensors of one adapted module, by suffix (`lora_A.weight`). nested: how many `base_layer` stand in their
    names between module and suffix."""

    module: str
    nested: int
    tensors: dict[str, TensorEntry] = field(default_factory=dict)

    @property
    def first(self) -> TensorEntry:
        return self.tensors[min(self.tensors)]


@dataclass(frozen=True)
class View:
    """index: of the adapter in the merge. shared: its model-level tensors by name without `base_model.`."""

    index: int
    adapter: AdapterInput
    base: BaseFingerprint
    modules: BaseModules
    shared: Mapping[str, TensorEntry]

    @property
    def config(self) -> AdapterConfig:
        return self.adapter.config

    @cached_property
    def scale(self) -> Scales:
        return scales(self.config)

    @cached_property
    def tied(self) -> bool:
        """A checkpoint may hold an output layer that its config ties away again when it is loaded."""
        nested = self.base.config.get("text_config")
        configs = (self.base.config, nested if isinstance(nested, dict) else {})
        return self.base.tied or any(part.get("tie_word_embeddings") is True for part in configs)

    @cached_property
    def embedding(self) -> BaseModule | None:
        return input_embedding(self.modules.modules)

    @cached_property
    def stores_transposed(self) -> bool:
        return any(module.transposed for module in self.modules.modules.values())

    def module(self, path: str, entry: TensorEntry, *kinds: str) -> tuple[BaseModule, BaseTensor]:
        """The base's module of that path and the tensor of its weight. kinds: that the type can be merged into.

        Raises RegistryError `rejected` where there is none, `unsupported` for another kind, a weight that is stored
        quantized, and modules that share their weight with another one.
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
                way_out="Merge onto the full-precision base.",
                module=path,
            )
        self.refuse_tied(path, found.weight.name, entry)
        return found, found.weight

    def refuse_tied(self, module: str, tensor: str, entry: TensorEntry) -> None:
        if not self.tied:
            return
        weight = self.embedding.weight if self.embedding is not None else None
        if (weight is not None and tensor == weight.name) or module.rpartition(".")[2] in _TIED_OUTPUTS:
            raise RegistryError(
                "unsupported",
                f"{entry.name} changes {module}, but the base ties its output layer to its input embedding: merged, "
                "the change would reach both, which is another model than the one trained.",
                way_out="Serve the adapter unmerged, or untie the base first and register it as a base of its own.",
                module=module,
                tensor=entry.name,
            )


def factor(entry: TensorEntry) -> Factor:
    """Raises RegistryError `rejected` where the tensor does not hold floating-point numbers."""
    if entry.dtype not in FLOAT_DTYPES:
        raise rejected(
            f"{entry.name} has the type {entry.dtype}; expected one of {', '.join(sorted(FLOAT_DTYPES))}", entry
        )
    return Factor(entry.name, entry.dtype, entry.shape, entry.file_start, entry.file_end)


def shape(tensor: TensorEntry | BaseTensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "scalar"


def rejected(what: str, entry: TensorEntry) -> RegistryError:
    return RegistryError(
        "rejected",
        f"{what}.",
        way_out="Merge an adapter that fits this base; `lora-reg push --dry-run` lists all faults.",
        tensor=entry.name,
    )


def unsupported(name: str, module: str) -> NoReturn:
    raise RegistryError(
        "unsupported",
        f"Merging {name} is not supported; the adapter adapts {module} that way.",
        type=name,
        module=module,
    )
