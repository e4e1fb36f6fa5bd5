"""Tensors of an adapter that must equal others: copies of base weights, and second copies of saved modules.

A copy changes nothing only if it is equal; names and shapes cannot tell, so the values are compared before a merge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from lora_contract.base import BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.tensors import TensorEntry
from lora_kernels.checkpoint.records import Factor
from lora_kernels.checkpoint.sources import Source
from lora_kernels.quantized.layout import Quantized

if TYPE_CHECKING:
    from lora_kernels.checkpoint.factors import FactorReader
    from lora_kernels.merging.plan import MergePlan


class Copy(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor of an adapter, and the one that it must equal. file: of the base, that has it; None: the adapter's.
    quantized: how the base stores it, if it is quantized; a copy then equals its dequantized values."""

    copy: Factor
    original: Factor
    file: str | None = None
    quantized: Quantized | None = None

    @classmethod
    def of_base(cls, entry: TensorEntry, tensor: BaseTensor) -> Copy:
        original = Factor(tensor.name, tensor.dtype, tensor.shape, tensor.start, tensor.end)
        return cls(Factor.of(entry), original, tensor.file)


def check_base_copies(plan: MergePlan, *, base: Source, adapters: Sequence[Source]) -> None:
    """Compare the values of all copies. Raises RegistryError `rejected`, naming the first that differs.

    adapters: one source per adapter of the plan.
    """
    for source, adapter in zip(adapters, plan.adapters, strict=True):
        for known in adapter.copies:
            if not _equal(known, base=base, adapter=source, weights=adapter.file):
                raise _differ(known)


def _equal(known: Copy, *, base: Source, adapter: Source, weights: str) -> bool:
    import numpy as np

    from lora_kernels.checkpoint.factors import FactorReader
    from lora_kernels.numeric.blocks import BLOCK

    own = FactorReader(adapter, weights)
    if known.quantized is not None:
        return _equal_dequantized(known, known.quantized, base, own)
    other = own if known.file is None else FactorReader(base, known.file)
    elements = math.prod(known.copy.shape)
    one, two = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for start in range(0, elements, BLOCK):
        size = min(BLOCK, elements - start)
        if not np.array_equal(
            own.values(known.copy, start, one[:size]), other.values(known.original, start, two[:size])
        ):
            return False
    return True


def _equal_dequantized(known: Copy, stored: Quantized, base: Source, own: FactorReader) -> bool:
    import numpy as np

    from lora_kernels.merging.weights import open_quantized
    from lora_kernels.numeric.blocks import blocks, matrix
    from lora_kernels.numeric.dtypes import decode, encode, storage

    weights = open_quantized(stored, base)()
    rows, columns = matrix(stored.shape)
    for block in blocks(0, rows, columns):
        copied = own.values(known.copy, block.first, np.empty(block.elements, np.float32))
        values = weights.read(block, np.empty(block.shape, np.float32)).reshape(-1)
        rounded = encode(values, known.copy.dtype, np.empty(values.shape, storage(known.copy.dtype)))
        if not np.array_equal(copied, decode(rounded, known.copy.dtype, values)):
            return False
    return True


def _differ(known: Copy) -> RegistryError:
    copy, original = known.copy.name, known.original.name
    if known.file is None:
        return RegistryError(
            "rejected",
            f"{copy} and {original} are two copies of one saved module and differ; PEFT loads the second.",
            hint="Save the adapter again with PEFT's save_pretrained.",
            tensor=copy,
        )
    return RegistryError(
        "rejected",
        f"{copy} is stored as a copy of the base's {original}, but its values differ: the module was trained, or the "
        "adapter belongs to another base.",
        hint="If the module was trained in full, name it in modules_to_save of adapter_config.json: the merge then "
        "replaces the base's. Otherwise check the base.",
        tensor=copy,
    )
