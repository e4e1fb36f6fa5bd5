"""The change that an adapter makes to one tensor of the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from lora_kernels.checkpoint.records import Factor
from lora_kernels.types.updates import UpdateSpec


class TiedCopy(NamedTuple):
    """A tied tensor that the adapter stores twice. Both must be equal; a copy of the reversed shape is transposed."""

    original: Factor
    copy: Factor


@dataclass(frozen=True)
class Change:
    """An update of a tensor of the base.

    Args:
        tensor: its name in the base.
        module: path of the adapted module.
        weight: of the adapter, for non-additive updates, which interpolate: W + weight * (f(W) - W). Additive updates
            have it in their scale.
        columns: width of the tensor as a matrix, if it is not the product of all dimensions but the first.
        copies: tied copies of factors of the update.
    """

    tensor: str
    module: str
    update: UpdateSpec
    weight: float = 1.0
    columns: int | None = None
    copies: tuple[TiedCopy, ...] = ()


Matches: TypeAlias = list[Change]
