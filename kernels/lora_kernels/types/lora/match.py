"""LORA: W + s B A and its variants, on every kind of layer that PEFT adapts. Merge rules are those of peft 0.21.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lora_contract.adapter.coverage import names
from lora_contract.adapter.patterns import targets
from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.tensors import TensorEntry
from lora_kernels.checkpoint.records import Factor
from lora_kernels.types import trainable_tokens as tokens
from lora_kernels.types.forms.low_rank import LowRankProduct
from lora_kernels.types.lora.experts import match_stack
from lora_kernels.types.lora.layout import Layout
from lora_kernels.types.lora.pairs import match_pair
from lora_kernels.types.matching.change import Change, Matches
from lora_kernels.types.matching.view import View, rejected, split_tied, unsupported

# Options without a merged form, or that PEFT itself merges wrongly: option, name, reason.
_UNSUPPORTED_OPTIONS: Final = (
    ("use_qalora", "QALoRA", "it pools the inputs, which no change of a weight can do"),
    ("alora_invocation_tokens", "activated LoRA", "it is active only after its invocation tokens"),
    ("arrow_config", "LoRA with an Arrow router", "its weights depend on each token"),
    ("layer_replication", "LoRA with layer_replication", "the copies of a layer share one weight in the checkpoint"),
    ("megatron_config", "LoRA on Megatron layers", "their weights are split over processes"),
)


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    """Raises as `match_adapter` does."""
    for option, name, why in _UNSUPPORTED_OPTIONS:
        if view.config.on(option):
            unsupported(name, groups[0].path if groups else "no module", why)
    _check_named(view, groups)
    layout = Layout(view, groups)
    found: Matches = []
    stacks: dict[str, list[ModuleTensors]] = {}
    # DoRA has magnitudes of inputs for an embedding, but of outputs for the layer tied to it: they cannot be tied.
    tied = view.config.on("ensure_weight_tying") and not view.config.use_dora
    single, head = split_tied(view, groups) if tied else (groups, None)
    for group in single:
        module = view.modules.resolve(group.path)
        if tokens.SUFFIX in group.tensors:
            found += tokens.match_rows(view, group, tokens.SUFFIX)
        elif group.nested or (module is not None and module.kind == "experts"):
            stacks.setdefault(group.path, []).append(group)
        else:
            for change in match_pair(view, group, layout):
                found += view.with_tied(change, _copies(change, head)) if head is not None else [change]
    for path in sorted(stacks):
        found += match_stack(view, path, stacks[path])
    return found


def _check_named(view: View, groups: Sequence[ModuleTensors]) -> None:
    """Refuse tensors of modules that the config does not target: PEFT would ignore them."""
    config = view.config
    if not config.target_modules and not config.target_parameters:
        return
    named = names(config, view.modules, targets(config))
    for group in groups:
        if tokens.SUFFIX not in group.tensors and not named(group.path):
            raise rejected(
                f"{group.first.name} adapts {group.path}, which target_modules of adapter_config.json does not name",
                group.first,
            )


def _copies(change: Change, head: ModuleTensors) -> list[tuple[Factor, TensorEntry]]:
    """The tied copies of a pair: PEFT ties the output layer's A and B to the embedding's B and A, transposed."""
    a, b = head.tensors.get("lora_A.weight"), head.tensors.get("lora_B.weight")
    if a is None or b is None or len(head.tensors) != 2 or not isinstance(change.update, LowRankProduct):
        raise rejected(
            f"{head.first.name}: an output layer tied to its embedding must have lora_A and lora_B", head.first
        )
    return [(change.update.a, b), (change.update.b, a)]
