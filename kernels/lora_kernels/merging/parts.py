"""Matching of an adapter on a pipeline of diffusers: each of its parts against its component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from lora_contract.adapter.parts import parts_of
from lora_contract.base import BaseFingerprint
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModules, modules_of
from lora_contract.pipelines import is_pipeline
from lora_kernels.checkpoint.folders import AdapterInput
from lora_kernels.merging.base_copies import Copy
from lora_kernels.merging.match import Matched, match_adapter
from lora_kernels.types.matching.change import Change
from lora_kernels.types.matching.tied import Tie


def match_parts(
    index: int, adapter: AdapterInput, *, base: BaseFingerprint, modules: BaseModules, tie: Tie | None
) -> Matched:
    """Match every tensor of an adapter; see `match_adapter`. Changes of a pipeline name tensors of the pipeline."""
    if not is_pipeline(base.config):
        return match_adapter(index, adapter, base=base, modules=modules, tie=tie)
    changes: list[Change] = []
    ignored: list[str] = []
    copies: list[Copy] = []
    for part in parts_of(base, adapter.config, adapter.header):
        own = msgspec.structs.replace(adapter, config=part.config, header=part.header)
        found = match_adapter(index, own, base=part.base, modules=modules_of(part.base), tie=None)
        changes += [replace(change, tensor=part.prefix + change.tensor) for change in found.changes]
        ignored += found.ignored
        copies += found.copies
    return Matched(changes, tuple(ignored), tuple(copies))


def refuse_options(base: BaseFingerprint, options: Sequence[str | None]) -> None:
    """Raise RegistryError `unsupported` for options of a merge that a pipeline does not have."""
    if is_pipeline(base.config) and "nf4" in options:
        raise RegistryError(
            "unsupported",
            f"The base is a pipeline ({base.architecture}); NF4 is for single models, whose config describes it.",
            hint="Merge in another dtype, and quantize a component when it is loaded.",
        )
