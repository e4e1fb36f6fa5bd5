"""Tensors that an adapter stores twice because PEFT ties them. Merging one is correct only if both are equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import BLOCK
from lora_kernels.types.matching.change import TiedCopy


def check_copies(copies: Sequence[TiedCopy], reader: FactorReader) -> None:
    """Raise RegistryError `rejected` if a factor and its copy differ."""
    for original, copy in sorted(copies, key=lambda pair: pair.original.name):
        same = _equal if original.shape == copy.shape else _transposed
        if not same(original, copy, reader):
            raise RegistryError(
                "rejected",
                f"{original.name} and {copy.name} differ, but adapter_config.json says that the adapter ties them; "
                "training changed them separately.",
                hint="Set ensure_weight_tying to false in adapter_config.json and name both layers in "
                "target_modules or modules_to_save, so that each gets its own.",
                tensor=copy.name,
            )


def _equal(first: Factor, second: Factor, reader: FactorReader) -> bool:
    elements = int(np.prod(first.shape))
    one, other = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for start in range(0, elements, BLOCK):
        size = min(BLOCK, elements - start)
        if not np.array_equal(
            reader.values(first, start, one[:size]), reader.values(second, start, other[:size]), equal_nan=True
        ):
            return False
    return True


def _transposed(first: Factor, second: Factor, reader: FactorReader) -> bool:
    return bool(np.array_equal(reader.load(first), reader.load(second).T))
