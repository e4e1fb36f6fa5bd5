"""What an adapter of the merge does to a tensor, as a row of the plan."""

from __future__ import annotations

import msgspec

from lora_kernels.types import table
from lora_kernels.types.matching.change import Change, TiedCopy


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A change by the adapter of that index. Everything else is as of `Change`."""

    adapter: int
    module: str
    update: table.AnyUpdate  # looked up when a plan is read, not when one is made
    weight: float = 1.0
    columns: int | None = None
    copies: tuple[TiedCopy, ...] = ()

    @classmethod
    def of(cls, adapter: int, change: Change) -> Delta:
        return cls(adapter, change.module, change.update, change.weight, change.columns, change.copies)
