"""Tensors that an adapter holds twice because PEFT ties them. Merging one is right only where both are equal."""

from __future__ import annotations

import numpy as np

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.records import Factor
from lora_kernels.merging.delta import TWIN, Delta
from lora_kernels.numeric.blocks import BLOCK


def check_twins(delta: Delta, reader: FactorReader) -> None:
    """Raises RegistryError `rejected` where a factor and its twin differ. A twin of the shape turned round is the
    transpose."""
    for key, twin in sorted(delta.factors.items()):
        if key.startswith(TWIN):
            original = delta.factors[key.removeprefix(TWIN)]
            if not (
                _equal(original, twin, reader) if original.shape == twin.shape else _turned(original, twin, reader)
            ):
                raise RegistryError(
                    "rejected",
                    f"{original.name} and {twin.name} differ, but adapter_config.json says that the adapter ties them; "
                    "the training has parted them.",
                    hint="Set ensure_weight_tying to false in adapter_config.json and name both layers in "
                    "target_modules or modules_to_save, so that each gets its own.",
                    tensor=twin.name,
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


def _turned(first: Factor, second: Factor, reader: FactorReader) -> bool:
    return bool(np.array_equal(reader.load(first), reader.load(second).T))
