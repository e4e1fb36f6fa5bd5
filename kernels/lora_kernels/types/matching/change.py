"""What an adapter does to one tensor of the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from lora_kernels.checkpoint.records import Factor
from lora_kernels.types.updates import UpdateSpec


class TiedCopy(NamedTuple):
    """A tensor that the adapter holds twice because PEFT ties it. Both must be equal; a copy of the shape turned round
    is the transpose."""

    original: Factor
    copy: Factor


@dataclass(frozen=True)
class Change:
    """An update of a tensor of the base.

    Args:
        tensor: its name in the base.
        module: path of the adapted module.
        weight: of updates that do not add: they take the weights `weight` of the way from before to after. Updates that
            add have it in their scale.
        columns: width of the tensor seen as a matrix, if it is not the product of all dimensions but the first.
        copies: tensors that repeat factors of the update.
    """

    tensor: str
    module: str
    update: UpdateSpec
    weight: float = 1.0
    columns: int | None = None
    copies: tuple[TiedCopy, ...] = ()


Matches: TypeAlias = list[Change]
