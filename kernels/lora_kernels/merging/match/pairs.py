"""A pair A, B on one layer: linear, Conv1D, embedding, convolution or packed attention, with what stands beside it.

Merge rules are those of peft 0.21.2 (`get_delta_weight` and `merge` of its layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.match.view import Group, Matches, View, factor, rejected, shape, unsupported
from lora_reg.spec.adapter.lora import TRAINING_ONLY
from lora_reg.spec.adapter.scaling import ModuleScale
from lora_reg.spec.base import BaseTensor
from lora_reg.spec.modules import BaseModule
from lora_reg.spec.tensors import TensorEntry

_HALVES: Final = (
    ("linear", "lora_A.weight", "lora_B.weight"),
    ("linear", "lora_A", "lora_B"),
    ("embedding", "lora_embedding_A", "lora_embedding_B"),
)
_MAGNITUDES: Final = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
_BIAS: Final = "lora_B.bias"
_KASA: Final = "lora_diag"
# The output projection inside a `nn.MultiheadAttention` that is adapted as a whole.
_WRAPPED_PROJECTION: Final = ".base_layer.out_proj."


class Layout:
    """Which linear weights are stored (in, out).

    PEFT goes by the layer's class and corrects `fan_in_fan_out` after it, so the flag says nothing about a module. A
    base of a type that is known is taken as it stores; for others the flag is believed where no update of the adapter
    contradicts it.
    """

    def __init__(self, view: View, groups: Sequence[Group]) -> None:
        self._view = view
        self._transposed, self._plain = 0, 0
        if view.config.fan_in_fan_out and not view.stores_transposed:
            for group in groups:
                self._count(group)

    def _count(self, group: Group) -> None:
        a, b = group.tensors.get("lora_A.weight"), group.tensors.get("lora_B.weight")
        found = self._view.modules.resolve(group.module)
        if a is None or b is None or found is None or found.kind != "linear" or found.weight is None:
            return
        rows, columns = found.weight.shape
        if rows != columns:
            self._transposed += (b.shape[:1], a.shape[1:]) == ((columns,), (rows,))
            self._plain += (b.shape[:1], a.shape[1:]) == ((rows,), (columns,))

    def transposed(self, found: BaseModule, weight: BaseTensor) -> bool:
        view = self._view
        if found.transposed or view.stores_transposed or not view.config.fan_in_fan_out:
            return found.transposed
        if bool(self._transposed) == bool(self._plain):
            square = weight.shape[0] == weight.shape[1]
            if square or self._transposed:
                unsupported(
                    f"LoRA with fan_in_fan_out on a base of type {view.base.model_type or 'unknown'}",
                    found.path,
                    "whether its weight is stored (in, out) or (out, in) cannot be told",
                )
        return bool(self._transposed)


def match_pair(view: View, group: Group, layout: Layout) -> Matches:
    """What the tensors of a module do to its weight and bias. Raises as `match_adapter` does."""
    kind, a, b = _halves(group)
    if _KASA in group.tensors:
        unsupported("KaSA", group.module, "its base was cut down when training started")
    found, weight = view.module(group.module, a, "linear", "embedding", "conv", "mha")
    attention = _attention(view, group, a)
    if view.config.use_dora and (view.config.lora_bias or attention is not None or found.kind == "mha"):
        unsupported("DoRA together with lora_bias or on packed attention", group.module, "PEFT makes no such adapter")
    scale = view.scale(attention or group.module)
    _check_rank(group, a, scale)
    times = 1.0
    if attention is not None:
        # PEFT adds the update of this projection twice, in the forward pass of training as in the merge: its
        # `MultiheadAttention.merge` adds it and then calls `merge` of the projection, which adds it again.
        times = 2.0
    options: dict[str, Any] = {}
    blocks = _blocks(view, group, found, scale)
    if blocks:
        options["blocks"] = blocks
    if _transposed(found, kind, weight, a, b, layout, blocks):
        options["transposed"] = True
    factors = {"A": factor(a), "B": factor(b)}
    magnitude = _magnitude(view, group, weight, transposed="transposed" in options)
    if magnitude is not None:
        delta = Delta(
            adapter=view.index,
            kind="dora",
            module=group.module,
            factors={**factors, "magnitude": factor(magnitude)},
            scale=scale.scale,
            weight=view.adapter.weight,
            options=options,
        )
    else:
        delta = Delta(
            adapter=view.index,
            kind="low-rank",
            module=group.module,
            factors=factors,
            scale=times * scale.scale * view.adapter.weight,
            options=options,
        )
    used = {a.name, b.name, *([magnitude.name] if magnitude is not None else [])}
    _check_rest(view, group, used)
    return [(weight.name, delta), *_bias(view, group, found, scale)]


def _halves(group: Group) -> tuple[str, TensorEntry, TensorEntry]:
    """Kind, A and B of the module."""
    for kind, *suffixes in _HALVES:
        present = [group.tensors.get(suffix) for suffix in suffixes]
        first, second = present
        if first is not None and second is not None:
            return kind, first, second
        for half, other in zip(present, reversed(suffixes), strict=True):
            if half is not None:
                missing = "lora_B" if "_B" in other else "lora_A"
                raise rejected(f"{half.name} has no {missing} beside it; half an update cannot be merged", half)
    entry = group.first
    raise rejected(f"{entry.name} has neither lora_A nor lora_B beside it; alone it cannot be merged", entry)


def _check_rest(view: View, group: Group, used: set[str]) -> None:
    """What stands beside a pair is known: a bias, or state of the training that the adapter's effect does not need."""
    idle = {suffix for option, found in TRAINING_ONLY.items() if view.config.on(option) for suffix in found}
    for suffix, entry in group.tensors.items():
        if suffix in idle:
            view.ignored.append(entry.name)
        elif entry.name not in used and suffix != _BIAS:
            raise rejected(f"{entry.name} has no place beside the other tensors of {group.module}", entry)


def _check_rank(group: Group, a: TensorEntry, scale: ModuleScale) -> None:
    # An empty pair adds nothing whatever rank the config names (pruned modules are stored so).
    if a.shape and a.shape[0] not in (0, scale.r):
        raise rejected(
            f"{a.name} has rank {a.shape[0]}, but adapter_config.json gives {group.module} rank {scale.r}", a
        )


def _attention(view: View, group: Group, a: TensorEntry) -> str | None:
    """The attention block of an output projection that is adapted with it: rank and alpha are the block's."""
    return view.modules.attention_of(group.module) if _WRAPPED_PROJECTION in a.name else None


def _transposed(
    found: BaseModule,
    kind: str,
    weight: BaseTensor,
    a: TensorEntry,
    b: TensorEntry,
    layout: Layout,
    blocks: dict[str, int],
) -> bool:
    """Check the shapes of a pair; True where the update is added transposed (weights stored (in, out), embeddings)."""
    if found.kind == "conv":
        _check_convolution(weight, a, b, found.path)
        return False
    rank = b.shape[1] * blocks.get("B", 1) if len(b.shape) == 2 else -1
    if len(a.shape) != 2 or a.shape[0] != rank:
        raise rejected(f"{a.name} {shape(a)} and {b.name} {shape(b)} are no pair (r, in) and (out, r)", b)
    if len(weight.shape) != 2:
        raise rejected(f"{weight.name} has the shape {shape(weight)}; a LoRA pair needs a matrix", a)
    rows, columns = weight.shape
    produced = (b.shape[0], a.shape[1] * blocks.get("A", 1))
    transposed = kind == "embedding" or layout.transposed(found, weight)
    expected = (columns, rows) if transposed else (rows, columns)
    if produced != expected:
        raise rejected(
            f"{a.name} and {b.name} make an update of {produced[0]} x {produced[1]}, but {weight.name} "
            f"({rows} x {columns}) needs {expected[0]} x {expected[1]}",
            b,
        )
    return transposed


def _check_convolution(weight: BaseTensor, a: TensorEntry, b: TensorEntry, module: str) -> None:
    """A has the kernel's size, B a kernel of 1: A flattened behind r and B make the flattened kernel."""
    if len(a.shape) != len(weight.shape) or len(b.shape) != len(weight.shape) or any(size != 1 for size in b.shape[2:]):
        raise rejected(
            f"{a.name} {shape(a)} and {b.name} {shape(b)} are no pair (r, in, kernel…) and (out, r, 1…) for "
            f"{weight.name} ({shape(weight)})",
            b,
        )
    if b.shape[1] and a.shape[0] > b.shape[1] and a.shape[0] % b.shape[1] == 0:
        unsupported("LoRA on a convolution with groups", module, "PEFT has no merged form for it")
    if a.shape[0] != b.shape[1] or b.shape[0] != weight.shape[0] or a.shape[1:] != weight.shape[1:]:
        raise rejected(
            f"{a.name} {shape(a)} and {b.name} {shape(b)} make no update of {weight.name} ({shape(weight)})", b
        )


def _magnitude(view: View, group: Group, weight: BaseTensor, *, transposed: bool) -> TensorEntry | None:
    """The magnitudes of DoRA, one per output; None where the module has none."""
    found = next((group.tensors[suffix] for suffix in _MAGNITUDES if suffix in group.tensors), None)
    if found is None:
        if view.config.use_dora:
            raise rejected(
                f"{group.module} has no lora_magnitude_vector, but adapter_config.json says DoRA", group.first
            )
        return None
    if not view.config.use_dora:
        raise rejected(f"{found.name} belongs to DoRA, which adapter_config.json does not switch on", found)
    outputs = weight.shape[1] if transposed else weight.shape[0]
    if found.elements != outputs or max(found.shape, default=0) != outputs:
        raise rejected(f"{found.name} has the shape {shape(found)}; {weight.name} has {outputs} outputs", found)
    return found


def _bias(view: View, group: Group, found: BaseModule, scale: ModuleScale) -> Matches:
    """lora_bias: bias + s * lora_B.bias."""
    entry = group.tensors.get(_BIAS)
    if entry is None:
        if view.config.lora_bias and "lora_embedding_A" not in group.tensors:
            raise rejected(f"{group.module} has no {_BIAS}, but adapter_config.json says lora_bias", group.first)
        return []
    if not view.config.lora_bias:
        raise rejected(f"{entry.name} belongs to lora_bias, which adapter_config.json does not switch on", entry)
    if found.kind == "mha":
        unsupported("lora_bias on packed attention", group.module, "PEFT trains that bias but never adds it")
    bias = view.modules.parameters.get(f"{found.path}.bias")
    if bias is None:
        raise rejected(
            f"{entry.name} adds to the bias of {group.module}, but the base has no bias there to add it to; a model of "
            "its architecture would not load one",
            entry,
        )
    if bias.shape != entry.shape:
        raise rejected(f"{entry.name} has the shape {shape(entry)}, but {bias.name} has {shape(bias)}", entry)
    delta = Delta(
        adapter=view.index,
        kind="add",
        module=group.module,
        factors={"term": factor(entry)},
        scale=scale.scale * view.adapter.weight,
    )
    return [(bias.name, delta)]


def _blocks(view: View, group: Group, found: BaseModule, scale: ModuleScale) -> dict[str, int]:
    """BD-LoRA: the factor of the module, A or B, that holds the blocks of a block-diagonal matrix, and their number.

    PEFT looks for each of its patterns anywhere in the last part of the module's name (`BdLoraLinearVariant.init`).
    """
    options = view.config.raw.get("use_bdlora")
    if not options or found.kind != "linear":
        return {}
    if view.config.use_dora or view.config.lora_bias or not isinstance(options, dict):
        unsupported("BD-LoRA together with other variants", group.module)
    count = options.get("nblocks", 1)
    name = group.module.rpartition(".")[2]
    halves = [half for half in "AB" if _named(name, options.get(f"target_modules_bd_{half.lower()}"))]
    if type(count) is not int or count < 1 or len(halves) > 1:
        raise rejected(
            f"adapter_config.json has use_bdlora with nblocks {str(count)[:40]} and {len(halves)} patterns for {name}, "
            "expected a whole number and at most one",
            group.first,
        )
    if not halves or count == 1:
        return {}
    split = group.tensors[f"lora_{halves[0]}.weight"]
    if len(split.shape) != 2 or split.shape[0] % count or scale.r % count:
        raise rejected(f"{split.name} {shape(split)} cannot be cut into {count} blocks at rank {scale.r}", split)
    return {halves[0]: count}


def _named(name: str, patterns: object) -> bool:
    return isinstance(patterns, list) and any(isinstance(pattern, str) and pattern in name for pattern in patterns)
