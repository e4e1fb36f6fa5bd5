"""The choice of a composition's device: seconds on the CPU and on a GPU, predicted from shapes, ranks and method.

Only dense methods have anything to compute on a GPU. Seconds of a CPU are those measured on one core of an AMD EPYC
(`docs/devices.md`); those of a GPU are assumed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from lora_contract.devices import Device
from lora_kernels.adapters.low_rank import ModuleShape
from lora_kernels.composing.dense import DENSE
from lora_kernels.composing.module import ComposeSettings
from lora_kernels.devices.choice import Estimate, Execution, choose, choose_cpu

# Nanoseconds of one core per element of a module: of each adapter, and of the triplets per unit of the result's rank.
_ADAPTER: Final = 20.0
_TRIPLETS: Final = 4.0
# The same on a GPU, without what the CPU does meanwhile; and seconds until torch and CUDA are loaded.
_DEVICE: Final = 0.2
_PER_MODULE: Final = 0.05
_START: Final = 6.0


def choose_device(
    method: str,
    modules: Sequence[Sequence[ModuleShape]],
    settings: ComposeSettings,
    device: Device,
    threads: int | None,
) -> Execution:
    """Choose where to compose; see `devices.choose`.

    Args:
        modules: for each module, the shapes of the adapters that have it.
        settings: of the method.
        threads: None for one per processor.

    Raises RegistryError `unsupported` as well if `cuda` is requested for a method on factors.
    """
    if method not in DENSE:
        return choose_cpu(device, f"{method} computes on factors alone")
    return choose(device, lambda: estimate(method, modules, settings.rank, threads or os.cpu_count() or 1))


def estimate(method: str, modules: Sequence[Sequence[ModuleShape]], rank: int, threads: int) -> Estimate:
    """Predict both, of a dense method."""
    elements = [shapes[0].outputs * shapes[0].columns for shapes in modules]
    work = sum(
        size * (_ADAPTER * len(shapes) + _TRIPLETS * rank) for size, shapes in zip(elements, modules, strict=True)
    )
    cuda = _START + _PER_MODULE * len(modules) + sum(elements) * _DEVICE * rank * 1e-9
    what = f"{method} of {len(modules)} modules, {sum(elements) / 1e9:.2f} billion elements, rank {rank}"
    return Estimate(work * 1e-9 / threads, cuda, what)
