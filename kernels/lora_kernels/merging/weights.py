"""The base's weights as a merge reads them: as stored, dequantized, or through NF4."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lora_kernels.checkpoint.sources import Source
from lora_kernels.checkpoint.weights import NoWeights, StoredWeights, Weights
from lora_kernels.merging.plan import TensorPlan
from lora_kernels.quantized.grids import GridWeights
from lora_kernels.quantized.layout import Quantized
from lora_kernels.quantized.weights import FourBitWeights, Int8Weights, WeightsThroughNf4


def open_weights(tensor: TensorPlan, source: Source) -> Callable[[], Weights]:
    """Read the state that all threads share, and return a function that opens a reader for one thread.

    Raises RegistryError `corrupt`, and `rejected` if scales of quantized weights are damaged.
    """
    if tensor.new:
        return NoWeights
    known = tensor.quantized
    if known is not None:
        return open_quantized(known, source)
    stored = partial(StoredWeights, source, tensor.source_file, tensor.source_start, tensor.source_dtype)
    if not tensor.through_nf4:
        return stored
    return WeightsThroughNf4.open(tensor.name, tensor.shape, stored)


def open_quantized(known: Quantized, source: Source) -> Callable[[], Weights]:
    """Like `open_weights`, of a quantized weight."""
    if known.grid is not None:
        return GridWeights.open(known, source)
    return Int8Weights.open(known, source) if known.scheme == "int8" else FourBitWeights.open(known, source)
