"""The change of a tensor by one adapter of the merge, as a row of the plan."""

from __future__ import annotations

import msgspec

from lora_kernels.types import table
from lora_kernels.types.matching.change import Change, TiedCopy


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A `Change`, and the index of its adapter in the merge."""

    adapter: int
    module: str
    update: table.AnyUpdate  # looked up when a plan is decoded, not when one is built
    weight: float = 1.0
    columns: int | None = None
    copies: tuple[TiedCopy, ...] = ()

    @classmethod
    def of(cls, adapter: int, change: Change) -> Delta:
        return cls(adapter, change.module, change.update, change.weight, change.columns, change.copies)
