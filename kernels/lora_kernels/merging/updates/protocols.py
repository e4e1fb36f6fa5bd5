"""What a kind of update has to say: what it adds to a block, or how it changes one in place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal, NamedTuple

from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32

# How far an element of the result depends on other elements of the weight: on itself, or on its row.
Reach = Literal["element", "row"]


class Inputs(NamedTuple):
    """What a loader may read.

    before: the weight as the updates before leave it, in blocks of whole rows, for kinds that need a look at all of it
    first; to be called while loading only. A block is valid until the next. stored: the same, as the base holds it.
    first: no update comes before, so both are the same.
    """

    reader: FactorReader
    before: Callable[[], Iterator[tuple[Block, F32]]]
    stored: Callable[[], Iterator[tuple[Block, F32]]]
    first: bool


class Additive(ABC):
    """Adds a dW that does not depend on the weight."""

    @abstractmethod
    def delta(self, block: Block, out: F32) -> None:
        """Write dW of a block, scale included, to `out` of the block's shape."""


class Transform(ABC):
    """Makes new weights out of the old ones."""

    reach: ClassVar[Reach] = "row"
    # Rows of one band act on each other: as many from the first on, and again. 1 where none does.
    band: int = 1
    # Replaces the tensor: what was there before has no part in the result.
    replaces: ClassVar[bool] = False

    @abstractmethod
    def apply(self, block: Block, values: F32) -> None:
        """Change a block in place: `values`, of the block's shape, are the weights as the updates before left them.

        The block is any, or whole bands of whole rows, as `reach` and `band` say.
        """


Update = Additive | Transform
