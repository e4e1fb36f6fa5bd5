"""What an adapter does to a tensor, as data."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from lora_kernels.checkpoint.records import Factor

TWIN: Final = "twin-"


class Delta(msgspec.Struct, frozen=True):
    """What one adapter does to one tensor.

    kind: a row of `lora_kernels.merging.updates.LOADERS`, which says what `factors` and `options` mean; a factor whose
    key begins with TWIN is one that the file holds twice, and must be equal to the one of that key. scale: factor
    of what is added, the adapter's weight included; 1 where nothing is added. weight: the adapter's weight; kinds that
    do not add take the weights `weight` of the way from before to after. columns: width of the tensor seen as a matrix
    where it is not the product of all dimensions but the first; None where it is.
    """

    adapter: int
    kind: str
    module: str
    factors: dict[str, Factor]
    scale: float = 1.0
    weight: float = 1.0
    options: dict[str, Any] = {}
    columns: int | None = None
