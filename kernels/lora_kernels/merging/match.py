"""Which tensor of an adapter does what to which tensor of the base.

The tensors in the file are the authority: every one of them is matched, ignored for a stated reason, or an error that
names it. Merge rules are those of peft 0.21.2 (`LoraLayer.get_delta_weight`, `ModulesToSaveWrapper`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from lora_kernels.merging.delta import AdapterInput, Delta, DeltaKind, Factor
from lora_reg.spec.adapter.config import AdapterConfig
from lora_reg.spec.adapter.lora import changes_base
from lora_reg.spec.adapter.names import PREFIX
from lora_reg.spec.adapter.patterns import names_module
from lora_reg.spec.adapter.scaling import ModuleScale, scales
from lora_reg.spec.base import BaseFingerprint, BaseTensor
from lora_reg.spec.errors import RegistryError
from lora_reg.spec.modules import BaseModule, BaseModules, input_embedding
from lora_reg.spec.tensors import FLOAT_DTYPES, TensorEntry

# suffix -> (kind of pair, half). The order does not matter: no suffix ends in another.
_HALVES: Final[dict[str, tuple[DeltaKind, str]]] = {
    ".lora_A.weight": ("linear", "A"),
    ".lora_B.weight": ("linear", "B"),
    ".lora_embedding_A": ("embedding", "A"),
    ".lora_embedding_B": ("embedding", "B"),
}
_UNSUPPORTED_SUFFIXES: Final = {
    ".lora_magnitude_vector": "DoRA",
    ".lora_magnitude_vector.weight": "DoRA",
    ".lora_B.bias": "LoRA with lora_bias",
    ".lora_diag": "KaSA",
    ".lora_A": "LoRA on packed attention",
    ".lora_B": "LoRA on packed attention",
    ".trainable_tokens_delta": "trainable tokens",
}
# Options of LoRA that change the formula W + s B A, or the base that it is added to.
_UNSUPPORTED_OPTIONS: Final = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with lora_bias",
    "kasa_config": "KaSA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "layer_replication": "LoRA with layer_replication",
    "target_parameters": "LoRA on expert parameters",
    "trainable_token_indices": "trainable tokens",
}
# Layers that may share the storage of the input embedding.
_TIED_OUTPUTS: Final = frozenset({"lm_head", "embed_out", "output", "output_projection"})
_BASE_LAYER: Final = ".base_layer."


@dataclass
class Matched:
    """deltas: (name of the base tensor, what is done to it). ignored: names of the adapter's copies of base weights."""

    deltas: list[tuple[str, Delta]] = field(default_factory=list)
    ignored: tuple[str, ...] = ()


def match_adapter(index: int, adapter: AdapterInput, *, base: BaseFingerprint, modules: BaseModules) -> Matched:
    """Match every tensor of an adapter, in order of their names. Raises as `plan_merge` does."""
    config = adapter.config
    if not math.isfinite(adapter.weight):
        raise RegistryError(
            "invalid-request", f"The weight of adapter {index + 1} is {adapter.weight}; expected a finite number."
        )
    _refuse_unsupported(adapter)
    matcher = _Matcher(
        index, adapter, base=base, modules=modules, scale=scales(config), saved=names_module(config.modules_to_save)
    )
    return matcher.run()


def _refuse_unsupported(adapter: AdapterInput) -> None:
    config = adapter.config
    first = min((tensor.name for tensor in adapter.header.tensors), default="no module")
    where = first.removeprefix(PREFIX)
    where = where.partition(".lora_")[0] if ".lora_" in where else where.rpartition(".")[0] or where
    if config.peft_type != "LORA":
        _unsupported(config.peft_type, where)
    for option, name in _UNSUPPORTED_OPTIONS.items():
        if config.on(option):
            _unsupported(name, where)
    changed = changes_base(config)
    if changed is not None:
        raise RegistryError(
            "unsupported",
            f"The adapter was trained with {changed}, which changes the base weights when training starts; its tensors "
            "are not an update of the base as it is stored.",
            way_out="Save it converted to plain LoRA (PEFT: path_initial_model_for_weight_conversion) and merge that.",
            type=changed,
        )


def _unsupported(name: str, module: str) -> NoReturn:
    raise RegistryError(
        "unsupported",
        f"Merging {name} is not supported; the adapter adapts {module} that way.",
        type=name,
        module=module,
    )


class _Matcher:
    """Walks over the tensors of one adapter."""

    def __init__(
        self,
        index: int,
        adapter: AdapterInput,
        *,
        base: BaseFingerprint,
        modules: BaseModules,
        scale: Callable[[str], ModuleScale],
        saved: Callable[[str], bool],
    ) -> None:
        self.index = index
        self.adapter = adapter
        self.config: AdapterConfig = adapter.config
        self.base = base
        self.modules = modules
        self.scale = scale
        self.saved = saved
        self.embedding = input_embedding(modules.modules)
        # A checkpoint may hold an output layer that its config ties away again when it is loaded.
        nested = base.config.get("text_config")
        configs = (base.config, nested if isinstance(nested, dict) else {})
        self.tied = base.tied or any(part.get("tie_word_embeddings") is True for part in configs)
        self.stores_transposed = any(module.transposed for module in modules.modules.values())

    def run(self) -> Matched:
        result = Matched()
        ignored: list[str] = []
        pairs: dict[tuple[str, DeltaKind], dict[str, TensorEntry]] = {}
        for entry in sorted(self.adapter.header.tensors, key=lambda tensor: tensor.name):
            name = entry.name.removeprefix(PREFIX)
            for suffix, what in _UNSUPPORTED_SUFFIXES.items():
                if name.endswith(suffix):
                    _unsupported(what, name.removesuffix(suffix))
            half = next((suffix for suffix in _HALVES if name.endswith(suffix)), None)
            if half is not None:
                kind, side = _HALVES[half]
                pairs.setdefault((name.removesuffix(half), kind), {})[side] = entry
            elif _BASE_LAYER in name and not (name.endswith(".bias") and self.config.bias != "none"):
                self._check_copy(entry, name)
                ignored.append(entry.name)
            else:
                result.deltas.append(self._replacement(entry, name))
        for (module, kind), halves in pairs.items():
            result.deltas.append(self._pair(module, kind, halves))
        result.ignored = tuple(ignored)
        return result

    def _pair(self, module: str, kind: DeltaKind, halves: dict[str, TensorEntry]) -> tuple[str, Delta]:
        for side, other in (("A", "B"), ("B", "A")):
            if other not in halves:
                raise _rejected(
                    f"{halves[side].name} has no lora_{other} beside it; half an update cannot be merged", halves[side]
                )
        a, b = halves["A"], halves["B"]
        found, weight = self._module(module, a)
        transposed = self._orientation(found, kind, weight, a, b)
        scale = self.scale(module)
        rank = a.shape[0]
        # An empty pair adds nothing whatever rank the config names (pruned modules are stored so).
        if rank not in (0, scale.r):
            raise _rejected(f"{a.name} has rank {rank}, but adapter_config.json gives {module} rank {scale.r}", a)
        delta = Delta(
            adapter=self.index,
            kind=kind,
            module=module,
            scale=scale.scale * self.adapter.weight,
            a=self._factor(a),
            b=self._factor(b),
            transposed=transposed,
        )
        return weight.name, delta

    def _module(self, module: str, entry: TensorEntry) -> tuple[BaseModule, BaseTensor]:
        found = self.modules.resolve(module)
        if found is None:
            raise _rejected(f"{entry.name} adapts {module}, which the base does not have", entry)
        if found.kind not in ("linear", "embedding"):
            _unsupported(f"LoRA on a module of kind {found.kind}", module)
        if found.weight is None:
            raise RegistryError(
                "unsupported",
                f"{module} is stored quantized in the base; a merge adds to floating-point weights only.",
                way_out="Merge onto the full-precision base.",
                module=module,
            )
        self._refuse_tied(module, found.weight.name, entry)
        return found, found.weight

    def _orientation(
        self, found: BaseModule, kind: DeltaKind, weight: BaseTensor, a: TensorEntry, b: TensorEntry
    ) -> bool:
        """Check the shapes of a pair; True where the update is added transposed (weights stored (in, out))."""
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise _rejected(f"{a.name} {_shape(a)} and {b.name} {_shape(b)} are no pair (r, in) and (out, r)", b)
        if len(weight.shape) != 2:
            raise _rejected(f"{weight.name} has the shape {_shape(weight)}; a LoRA pair needs a matrix", a)
        rows, columns = weight.shape
        produced = (b.shape[0], a.shape[1])
        transposed = kind == "linear" and found.transposed
        if kind == "linear" and self.config.fan_in_fan_out and not self.stores_transposed:
            # PEFT saves this flag only where it met layers that store (in, out); for square weights nothing else tells.
            _unsupported(f"LoRA with fan_in_fan_out on a base of type {self.base.model_type or 'unknown'}", found.path)
        expected = (columns, rows) if transposed or kind == "embedding" else (rows, columns)
        if produced != expected:
            raise _rejected(
                f"{a.name} and {b.name} make an update of {produced[0]} x {produced[1]}, but {weight.name} "
                f"({rows} x {columns}) needs {expected[0]} x {expected[1]}",
                b,
            )
        return transposed

    def _replacement(self, entry: TensorEntry, name: str) -> tuple[str, Delta]:
        trained_bias = self.config.bias != "none" and name.endswith(".bias")
        name = name.replace(_BASE_LAYER, ".").replace(".modules_to_save.", ".")
        module = name.rpartition(".")[0]
        if not trained_bias and not self._is_saved(module):
            raise _rejected(
                f"{entry.name} is no LoRA tensor and its module is not in modules_to_save; it would overwrite the base",
                entry,
            )
        what = "A trained bias" if trained_bias else "A module in modules_to_save"
        target = self.modules.resolve_parameter(name)
        self._refuse_tied(module, target.name if target is not None else "", entry)
        if target is None:
            raise _rejected(f"{entry.name} replaces {name}, which the base does not have", entry)
        if target.shape != entry.shape:
            raise _rejected(
                f"{entry.name} has the shape {_shape(entry)}, but {target.name} has {_shape(target)}", entry
            )
        if self.adapter.weight != 1:
            raise RegistryError(
                "rejected",
                f"{what} replaces {target.name} whole; it cannot be weighted by {self.adapter.weight:g}.",
                way_out="Give this adapter the weight 1.",
                tensor=entry.name,
            )
        delta = Delta(adapter=self.index, kind="replace", module=module, scale=1.0, a=None, b=self._factor(entry))
        return target.name, delta

    def _check_copy(self, entry: TensorEntry, name: str) -> None:
        """A copy of the base's own weight, as PEFT stores it for adapted embeddings, must at least be as large."""
        original = self.modules.resolve_parameter(name.replace(_BASE_LAYER, "."))
        if original is None:
            raise _rejected(f"{entry.name} is a copy of a base weight that the base does not have", entry)
        if original.shape != entry.shape:
            raise _rejected(
                f"{entry.name} has the shape {_shape(entry)}, but {original.name} has {_shape(original)}: the adapter "
                "was trained on a resized base",
                entry,
            )

    def _is_saved(self, module: str) -> bool:
        """modules_to_save may name a container: then its children are saved with it."""
        while module:
            if self.saved(module):
                return True
            module = module.rpartition(".")[0]
        return False

    def _refuse_tied(self, module: str, tensor: str, entry: TensorEntry) -> None:
        if not self.tied:
            return
        embedding = (
            self.embedding.weight.name if self.embedding is not None and self.embedding.weight is not None else None
        )
        if tensor == embedding or module.rpartition(".")[2] in _TIED_OUTPUTS:
            raise RegistryError(
                "unsupported",
                f"{entry.name} changes {module}, but the base ties its output layer to its input embedding: merged, "
                "the change would reach both, which is another model than the one trained.",
                way_out="Serve the adapter unmerged, or untie the base first and register it as a base of its own.",
                module=module,
                tensor=entry.name,
            )

    def _factor(self, entry: TensorEntry) -> Factor:
        if entry.dtype not in FLOAT_DTYPES:
            raise _rejected(
                f"{entry.name} has the type {entry.dtype}; expected one of {', '.join(sorted(FLOAT_DTYPES))}", entry
            )
        return Factor(entry.name, entry.dtype, entry.shape, entry.file_start, entry.file_end)


def _shape(tensor: TensorEntry | BaseTensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "scalar"


def _rejected(what: str, entry: TensorEntry) -> RegistryError:
    return RegistryError(
        "rejected",
        f"{what}.",
        way_out="Merge an adapter that fits this base; `lora-reg push --dry-run` lists all faults.",
        tensor=entry.name,
    )
