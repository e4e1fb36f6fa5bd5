"""The updates of one tensor, combined in the order of the adapters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.weights import Weights
from lora_kernels.merging.delta import Delta
from lora_kernels.merging.tied_copies import check_copies
from lora_kernels.numeric.blocks import Block, blocks
from lora_kernels.numeric.dtypes import F32
from lora_kernels.types.forms.products import LowRankAddition, sum_block
from lora_kernels.types.updates import Additive, Inputs, Transform, Update


class Updates:
    """The updates of one tensor, in order. Adjacent additive updates are summed first and added once."""

    def __init__(self, rows: int, columns: int) -> None:
        self._rows = rows
        self._columns = columns
        self._steps: list[tuple[list[Additive] | Transform, float]] = []

    def append(self, update: Update, weight: float) -> None:
        """Append an update. weight: of the adapter, used for a Transform only."""
        last = self._steps[-1][0] if self._steps else None
        if isinstance(update, Transform):
            self._steps.append((update, weight))
        elif isinstance(last, list):
            last.append(update)
        else:
            self._steps.append(([update], 1.0))

    @property
    def empty(self) -> bool:
        return not self._steps

    @property
    def replaces(self) -> bool:
        return any(isinstance(step, Transform) and step.replaces for step, _ in self._steps)

    @property
    def row_group(self) -> int:
        """Number of rows that a block must not split; 0 if elements are independent."""
        row_groups = [step.row_group for step, _ in self._steps if isinstance(step, Transform) and step.reach == "row"]
        return math.lcm(*row_groups) if row_groups else 0

    @property
    def low_rank(self) -> list[LowRankAddition] | None:
        """The updates if all are low-rank products, as in most merges; else None."""
        if len(self._steps) != 1 or not isinstance(self._steps[0][0], list):
            return None
        found = [update for update in self._steps[0][0] if isinstance(update, LowRankAddition)]
        return found if len(found) == len(self._steps[0][0]) else None

    def apply(self, block: Block, weight: F32, change: F32, new: F32, scratch: F32) -> None:
        """Write the updated block to `new` and its change to `change`; `scratch` is overwritten."""
        if len(self._steps) == 1 and isinstance(self._steps[0][0], list):
            sum_block(self._steps[0][0], block, change, new)
            np.add(weight, change, out=new)
            return
        np.copyto(new, weight)
        for step, share in self._steps:
            if isinstance(step, list):
                sum_block(step, block, change, scratch)
                np.add(new, change, out=new)
            elif share == 1:
                step.apply(block, new)
            else:
                np.copyto(change, new)
                step.apply(block, new)
                np.subtract(new, change, out=new)
                np.multiply(new, np.float32(share), out=new)
                np.add(new, change, out=new)
        np.subtract(new, weight, out=change)

    def before(self, weights: Weights) -> Iterator[tuple[Block, F32]]:
        """Yield the blocks of the tensor after the updates so far."""
        for block in blocks(0, self._rows, self._columns, row_group=max(self.row_group, 1)):
            weight, change, new, scratch = (np.empty(block.shape, np.float32) for _ in range(4))
            weights.read(block, weight)
            if self._steps:
                self.apply(block, weight, change, new, scratch)
            yield block, new if self._steps else weight


def load_updates(
    deltas: Sequence[Delta], readers: Sequence[FactorReader], weights: Weights, rows: int, columns: int
) -> Updates:
    """Load the planned updates of one tensor. readers: one per adapter of the plan. Raises RegistryError `rejected`."""
    updates, untouched = Updates(rows, columns), Updates(rows, columns)
    for delta in deltas:
        reader = readers[delta.adapter]
        check_copies(delta.copies, reader)
        inputs = Inputs(
            reader,
            module=delta.module,
            weight=delta.weight,
            before=lambda: updates.before(weights),
            stored=lambda: untouched.before(weights),
            first=updates.empty,
        )
        updates.append(delta.update.load(inputs), delta.weight)
    return updates
