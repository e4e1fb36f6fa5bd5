"""LORA: W + s B A, on linear and embedding layers. Merge rules are those of peft 0.21.2 (`get_delta_weight`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.match.view import Group, Matches, View, factor, rejected, shape, unsupported
from lora_reg.spec.base import BaseTensor
from lora_reg.spec.modules import BaseModule
from lora_reg.spec.tensors import TensorEntry

_PAIRS: Final = {
    "linear": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
}
_UNSUPPORTED_SUFFIXES: Final = {
    "lora_magnitude_vector": "DoRA",
    "lora_magnitude_vector.weight": "DoRA",
    "lora_B.bias": "LoRA with lora_bias",
    "lora_diag": "KaSA",
    "lora_A": "LoRA on packed attention",
    "lora_B": "LoRA on packed attention",
}
# Options that change the formula W + s B A, or the base that it is added to.
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


def match(view: View, groups: Sequence[Group]) -> Matches:
    """Raises as `match_adapter` does."""
    for option, name in _UNSUPPORTED_OPTIONS.items():
        if view.config.on(option):
            unsupported(name, groups[0].module if groups else "no module")
    found = []
    for group in groups:
        for suffix, what in _UNSUPPORTED_SUFFIXES.items():
            if suffix in group.tensors:
                unsupported(what, group.module)
        if group.nested:
            unsupported("LoRA on expert parameters", group.module)
        for kind, (a, b) in _PAIRS.items():
            if a in group.tensors or b in group.tensors:
                found.append(_pair(view, group, kind, a, b))
    return found


def _pair(view: View, group: Group, kind: str, a_suffix: str, b_suffix: str) -> tuple[str, Delta]:
    for suffix, other in ((a_suffix, b_suffix), (b_suffix, a_suffix)):
        if other not in group.tensors:
            present = group.tensors[suffix]
            missing = "lora_B" if other == b_suffix else "lora_A"
            raise rejected(f"{present.name} has no {missing} beside it; half an update cannot be merged", present)
    a, b = group.tensors[a_suffix], group.tensors[b_suffix]
    found, weight = view.module(group.module, a, "linear", "embedding")
    transposed = _transposed(view, found, kind, weight, a, b)
    scale = view.scale(group.module)
    rank = a.shape[0]
    # An empty pair adds nothing whatever rank the config names (pruned modules are stored so).
    if rank not in (0, scale.r):
        raise rejected(f"{a.name} has rank {rank}, but adapter_config.json gives {group.module} rank {scale.r}", a)
    return weight.name, Delta(
        adapter=view.index,
        kind="low-rank",
        module=group.module,
        factors={"A": factor(a), "B": factor(b)},
        scale=scale.scale * view.adapter.weight,
        options={"transposed": True} if transposed else {},
    )


def _transposed(view: View, found: BaseModule, kind: str, weight: BaseTensor, a: TensorEntry, b: TensorEntry) -> bool:
    """Check the shapes of a pair; True where the update is added transposed (weights stored (in, out), embeddings)."""
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise rejected(f"{a.name} {shape(a)} and {b.name} {shape(b)} are no pair (r, in) and (out, r)", b)
    if len(weight.shape) != 2:
        raise rejected(f"{weight.name} has the shape {shape(weight)}; a LoRA pair needs a matrix", a)
    rows, columns = weight.shape
    produced = (b.shape[0], a.shape[1])
    if kind == "linear" and view.config.fan_in_fan_out and not view.stores_transposed:
        # PEFT saves this flag only where it met layers that store (in, out); for square weights nothing else tells.
        unsupported(f"LoRA with fan_in_fan_out on a base of type {view.base.model_type or 'unknown'}", found.path)
    transposed = kind == "embedding" or found.transposed
    expected = (columns, rows) if transposed else (rows, columns)
    if produced != expected:
        raise rejected(
            f"{a.name} and {b.name} make an update of {produced[0]} x {produced[1]}, but {weight.name} "
            f"({rows} x {columns}) needs {expected[0]} x {expected[1]}",
            b,
        )
    return transposed
