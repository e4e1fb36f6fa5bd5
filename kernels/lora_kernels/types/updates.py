"""Updates of one tensor: as data in the plan (`UpdateSpec`), and loaded, ready to be applied to blocks (`Update`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import msgspec

from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block

if TYPE_CHECKING:
    from lora_kernels.checkpoint.factors import FactorReader
    from lora_kernels.numeric.dtypes import F32, F64

# How far an element of the result depends on other elements of the weight: on itself, or on its row.
Reach = Literal["element", "row"]


class Inputs(NamedTuple):
    """What an update is loaded from.

    Args:
        reader: reads the adapter's factors.
        module: path of the adapted module, for messages.
        weight: the adapter's weight in the merge.
        before: the weight as the updates before leave it, in blocks of whole rows, for updates that have to see all of
            it first. To be called while loading only. A block is valid until the next.
        stored: the same, as the base holds it.
        first: no update comes before, so both are the same.
    """

    reader: FactorReader
    module: str
    weight: float
    before: Callable[[], Iterator[tuple[Block, F32]]]
    stored: Callable[[], Iterator[tuple[Block, F32]]]
    first: bool

    def wide(self, factor: Factor) -> F64:
        """A factor in float64."""
        return self.reader.load(factor).astype("float64")


class Additive(ABC):
    """Adds a dW that does not depend on the weight."""

    @abstractmethod
    def delta(self, block: Block, out: F32) -> None:
        """Write dW of a block, scale included, to `out` of the block's shape."""


class Transform(ABC):
    """Makes new weights out of the old ones."""

    reach: ClassVar[Reach] = "row"
    # Rows of one band act on each other: as many from the first on, and again. 1 if none does.
    band: int = 1
    # Replaces the tensor: what was there before has no part in the result.
    replaces: ClassVar[bool] = False

    @abstractmethod
    def apply(self, block: Block, values: F32) -> None:
        """Change a block in place: `values`, of the block's shape, are the weights as the updates before left them.

        The block is any, or whole bands of whole rows, as `reach` and `band` say.
        """


Update = Additive | Transform


class UpdateSpec(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True):
    """What is done to one tensor, as data. Subclasses have a tag, by which a plan that was written as JSON is read."""

    def load(self, inputs: Inputs) -> Update:
        """Read the factors. Raises RegistryError `rejected` for values that make no update."""
        raise NotImplementedError

    @property
    def factors(self) -> Iterator[Factor]:
        """All tensors of the adapter that it is made from."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Factor):
                    yield part
