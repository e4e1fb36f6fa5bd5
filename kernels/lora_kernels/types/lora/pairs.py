"""A pair A, B on one layer: linear, Conv1D, embedding, convolution or packed attention, with its variants.

Merge rules are those of peft 0.21.2 (`get_delta_weight` and `merge` of its layers).
"""

from __future__ import annotations

from typing import Final

from lora_contract.adapter.scaling import ModuleScale
from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.base import BaseTensor
from lora_contract.modules import BaseModule
from lora_contract.tensors import TensorEntry
from lora_kernels.types.forms.low_rank import LowRankProduct
from lora_kernels.types.lora.dora import DoraProduct
from lora_kernels.types.lora.layout import Layout
from lora_kernels.types.lora.variants import bias, block_diagonal, check_rest, magnitude
from lora_kernels.types.matching.change import Change, Matches
from lora_kernels.types.matching.view import View, factor, rejected, shape, unsupported
from lora_kernels.types.updates import UpdateSpec

_HALVES: Final = (
    ("linear", "lora_A.weight", "lora_B.weight"),
    ("linear", "lora_A", "lora_B"),
    ("embedding", "lora_embedding_A", "lora_embedding_B"),
)
_KASA: Final = "lora_diag"
# The output projection inside a `nn.MultiheadAttention` that is adapted as a whole.
_WRAPPED_PROJECTION: Final = ".base_layer.out_proj."
_ADDED_TWICE_UNTIL: Final = (0, 21)


def match_pair(view: View, group: ModuleTensors, layout: Layout) -> Matches:
    """The changes of weight and bias by the tensors of a module. Raises as `match_adapter` does."""
    kind, a, b = _halves(group)
    if _KASA in group.tensors:
        unsupported("KaSA", group.path, "its base was truncated when training started")
    found, weight = view.module(group.path, a, "linear", "embedding", "conv", "mha")
    attention = _attention(view, group, a)
    if view.config.use_dora and (view.config.lora_bias or attention is not None or found.kind == "mha"):
        unsupported("DoRA together with lora_bias or on packed attention", group.path, "PEFT creates no such adapter")
    scale = view.scale(attention or group.path)
    _check_rank(group, a, scale)
    times = 1.0
    if attention is not None:
        # PEFT adds the update of this projection twice, both in the forward pass and in the merge: its
        # `MultiheadAttention.merge` adds it and then calls `merge` of the projection, which adds it again (PEFT pull
        # request 3774, open in November 2026).
        times = 2.0
        if view.peft_version is not None and view.peft_version > _ADDED_TWICE_UNTIL:
            unsupported(
                f"LoRA on packed attention, saved by PEFT {view.config.peft_version}",
                attention,
                "up to 0.21 PEFT adds the update of out_proj twice; it is unknown whether this version does",
            )
    diagonal = block_diagonal(view, group, found, scale)
    transposed = _transposed(found, kind, weight, a, b, layout, diagonal)
    magnitudes = magnitude(view, group, weight, transposed=transposed)
    product = LowRankProduct(
        a=factor(a),
        b=factor(b),
        # DoRA applies the adapter's weight to the whole change, not to the product.
        scale=scale.scale if magnitudes is not None else times * scale.scale * view.adapter.weight,
        transposed=transposed,
        a_blocks=diagonal.get("A", 1),
        b_blocks=diagonal.get("B", 1),
    )
    update: UpdateSpec = product if magnitudes is None else DoraProduct(product, factor(magnitudes))
    used = {a.name, b.name, *([magnitudes.name] if magnitudes is not None else [])}
    check_rest(view, group, used)
    changed = Change(weight.name, group.path, update, view.adapter.weight)
    return [changed, *bias(view, group, found, scale)]


def _halves(group: ModuleTensors) -> tuple[str, TensorEntry, TensorEntry]:
    """Kind, A and B of a module."""
    for kind, *suffixes in _HALVES:
        present = [group.tensors.get(suffix) for suffix in suffixes]
        first, second = present
        if first is not None and second is not None:
            return kind, first, second
        for half, other in zip(present, reversed(suffixes), strict=True):
            if half is not None:
                missing = "lora_B" if "_B" in other else "lora_A"
                raise rejected(f"{half.name} has no matching {missing}; half an update cannot be merged", half)
    entry = group.first
    raise rejected(f"{entry.name} has no matching lora_A and lora_B; it cannot be merged without them", entry)


def _check_rank(group: ModuleTensors, a: TensorEntry, scale: ModuleScale) -> None:
    # An empty pair, as stored for pruned modules, adds nothing, whatever the rank in the config.
    if a.shape and a.shape[0] not in (0, scale.r):
        raise rejected(f"{a.name} has rank {a.shape[0]}, but adapter_config.json gives {group.path} rank {scale.r}", a)


def _attention(view: View, group: ModuleTensors, a: TensorEntry) -> str | None:
    """The attention block of an output projection that is adapted with it, whose rank and alpha apply; None for other
    modules."""
    return view.modules.attention_of(group.path) if _WRAPPED_PROJECTION in a.name else None


def _transposed(
    found: BaseModule,
    kind: str,
    weight: BaseTensor,
    a: TensorEntry,
    b: TensorEntry,
    layout: Layout,
    blocks: dict[str, int],
) -> bool:
    """Check the shapes of a pair; True if the update is added transposed (weights stored (in, out), embeddings)."""
    if found.kind == "conv":
        _check_convolution(weight, a, b, found.path)
        return False
    rank = b.shape[1] * blocks.get("B", 1) if len(b.shape) == 2 else -1
    if len(a.shape) != 2 or a.shape[0] != rank:
        raise rejected(f"{a.name} {shape(a)} and {b.name} {shape(b)} are not a pair (r, in) and (out, r)", b)
    if len(weight.shape) != 2:
        raise rejected(f"{weight.name} has the shape {shape(weight)}; a LoRA pair needs a matrix", a)
    rows, columns = weight.shape
    produced = (b.shape[0], a.shape[1] * blocks.get("A", 1))
    transposed = kind == "embedding" or layout.transposed(found, weight)
    expected = (columns, rows) if transposed else (rows, columns)
    if produced != expected:
        raise rejected(
            f"{a.name} and {b.name} give an update of {produced[0]} x {produced[1]}, but {weight.name} "
            f"({rows} x {columns}) needs {expected[0]} x {expected[1]}",
            b,
        )
    return transposed


def _check_convolution(weight: BaseTensor, a: TensorEntry, b: TensorEntry, module: str) -> None:
    """Check that A has the kernel's size and B a kernel of 1: B times the flattened A is the flattened kernel."""
    if len(a.shape) != len(weight.shape) or len(b.shape) != len(weight.shape) or any(size != 1 for size in b.shape[2:]):
        raise rejected(
            f"{a.name} {shape(a)} and {b.name} {shape(b)} are not a pair (r, in, kernel…) and (out, r, 1…) for "
            f"{weight.name} ({shape(weight)})",
            b,
        )
    if b.shape[1] and a.shape[0] > b.shape[1] and a.shape[0] % b.shape[1] == 0:
        unsupported("LoRA on a convolution with groups", module, "PEFT has no merged form of it")
    if a.shape[0] != b.shape[1] or b.shape[0] != weight.shape[0] or a.shape[1:] != weight.shape[1:]:
        raise rejected(f"{a.name} {shape(a)} and {b.name} {shape(b)} do not match {weight.name} ({shape(weight)})", b)
