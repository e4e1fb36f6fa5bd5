"""Updates of one tensor: as data in the plan (`UpdateSpec`), and loaded, to be applied to blocks (`Update`)."""

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

# The elements of the weight on which an element of the result depends: itself, or its row.
Reach = Literal["element", "row"]


class Inputs(NamedTuple):
    """What an update is loaded from.

    Args:
        reader: reads the adapter's factors.
        module: path of the adapted module, for messages.
        weight: the adapter's weight in the merge.
        before: returns the weight after the preceding updates, in blocks of whole rows, for updates that need all of it
            first. Only to be called on loading. A block is valid until the next.
        stored: the same for the weight in the base.
        first: no update precedes, so both are the same.
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
    """Computes new weights from the old ones."""

    reach: ClassVar[Reach] = "row"
    # Number of consecutive rows that affect each other; 1 if rows are independent.
    row_group: int = 1
    # The result does not depend on the old weights.
    replaces: ClassVar[bool] = False

    @abstractmethod
    def apply(self, block: Block, values: F32) -> None:
        """Change a block in place: `values`, of the block's shape, are the weights after the preceding updates.

        Depending on `reach` and `row_group` the block is arbitrary, or consists of whole rows and groups of rows.
        """


Update = Additive | Transform


class UpdateSpec(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True):
    """An update of one tensor, as data. Subclasses have a tag, by which a plan is decoded from JSON."""

    def load(self, inputs: Inputs) -> Update:
        """Read the factors. Raises RegistryError `rejected` for values that do not define an update."""
        raise NotImplementedError

    @property
    def factors(self) -> Iterator[Factor]:
        """All tensors of the adapter that it uses."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Factor):
                    yield part
