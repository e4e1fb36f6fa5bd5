"""The choice of an extraction's device: seconds on the CPU and on a GPU, predicted from the targets and the rank.

Every changed target is read and multiplied by a sketch in each of several passes. How many tensors changed is not known
before they are compared: all targets are counted. Seconds of a CPU are those measured on one core of an AMD EPYC
(`docs/devices.md`); those of a GPU are assumed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Final

from lora_contract.base import BaseTensor
from lora_contract.devices import Device
from lora_contract.tensors import DTYPE_BYTES
from lora_kernels.devices.choice import Estimate, Execution, choose

# Nanoseconds of one core per element: constant, and per direction of the sketch.
_CONSTANT: Final = 80.0
_SLOPE: Final = 1.4
# Bytes a second of one core that compares two checkpoints, and over the link.
_COMPARED: Final = 2e9
_LINK: Final = 20e9
# The same per element and direction on a GPU, for each tensor, and until torch and CUDA are loaded.
_DEVICE: Final = 0.02
_PER_TENSOR: Final = 0.1
_START: Final = 6.0


def choose_device(
    targets: Sequence[BaseTensor], tensors: Sequence[BaseTensor], rank: int, device: Device, threads: int | None
) -> Execution:
    """Choose where to extract; see `devices.choose`.

    Args:
        targets, tensors: of the base: those that get factors, and all.
        rank: of the factors, or the largest that is searched.
        threads: None for one per processor.
    """
    return choose(device, lambda: estimate(targets, tensors, rank, threads or os.cpu_count() or 1))


def estimate(targets: Sequence[BaseTensor], tensors: Sequence[BaseTensor], rank: int, threads: int) -> Estimate:
    """Predict both."""
    elements = sum(math.prod(tensor.shape) for tensor in targets)
    size = sum(tensor.end - tensor.start for tensor in tensors)
    sent = 2 * sum(math.prod(tensor.shape) * DTYPE_BYTES[tensor.dtype] for tensor in targets)
    compared = 2 * size / _COMPARED / threads
    cpu = compared + elements * (_CONSTANT + _SLOPE * rank) * 1e-9 / threads
    on_device = sent / _LINK + elements * _DEVICE * rank * 1e-9 + _PER_TENSOR * len(targets)
    what = f"{len(targets)} targets of {elements / 1e9:.2f} billion elements, rank {rank}"
    return Estimate(cpu, _START + max(compared, on_device), what)
