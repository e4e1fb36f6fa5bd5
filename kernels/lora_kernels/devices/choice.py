"""The choice of a device, and the record of it.

`auto` compares two predictions, from bytes, elements, rank and method (`Estimate`). They are computed from figures that
each operation states beside its own; those of a GPU are assumed and not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from lora_contract.devices import DEVICES, Device, RecipeDevice
from lora_contract.errors import RegistryError
from lora_kernels.devices.cuda import PACKAGES, CudaDevice, find_device

# A prediction is no better than this: the CPU, whose bytes do not depend on a GPU, is left for a clear gain only.
_CLEARLY: Final = 0.8


class Execution(msgspec.Struct, frozen=True):
    """Where an operation ran.

    Args:
        device: `cpu` or `cuda`.
        backend: `numpy`, with its inner loops in C, on the CPU; else `triton`, or `torch` for its reference
            implementation.
        processor: name of the GPU; None for the CPU.
        versions: of the packages whose kernels ran, which may change last bits; None for the CPU.
        reason: why this device, as a sentence.
    """

    device: str = "cpu"
    backend: str = "numpy"
    processor: str | None = None
    versions: str | None = None
    reason: str = ""

    @property
    def identity(self) -> tuple[str | None, ...]:
        """What may change the last bits of a result."""
        return self.backend, self.processor, self.versions


class Estimate(NamedTuple):
    """Predicted seconds on each device. cuda: None if the operation has nothing to compute there. what: the work that
    decides, as a noun phrase."""

    cpu: float
    cuda: float | None
    what: str


def choose(
    device: Device,
    estimate: Callable[[], Estimate],
    *,
    find: Callable[[], CudaDevice | str] = find_device,
) -> Execution:
    """Choose the device of an operation.

    Args:
        device: as requested; `auto` takes the one that is predicted to be clearly faster.
        estimate: predicts; called for `auto` only, if there is a GPU.
        find: looks for a GPU.

    Raises RegistryError `invalid-request` for another device, `unsupported` if `cuda` is requested and there is none.
    """
    if device not in DEVICES:
        raise RegistryError("invalid-request", f"The device is {device!r}; expected one of {', '.join(DEVICES)}.")
    if device == "cpu":
        return Execution(reason="requested")
    found = find()
    if isinstance(found, str):
        if device == "auto":
            return Execution(reason=f"{found}")
        raise RegistryError(
            "unsupported",
            f"The device `cuda` was requested, and {found}.",
            hint="Use --device cpu, or a machine with an NVIDIA GPU, its driver, and lora-reg with the extra `worker`.",
        )
    if device == "cuda":
        return _on(found, "requested")
    predicted = estimate()
    if predicted.cuda is None:
        return Execution(reason=f"{predicted.what}: nothing of it is computed on a GPU")
    times = f"{predicted.cpu:.1f} s on the CPU and {predicted.cuda:.1f} s on {found.name} are predicted"
    reason = f"{predicted.what}: {times}"
    if predicted.cuda < _CLEARLY * predicted.cpu:
        return _on(found, reason)
    return Execution(reason=reason)


def _on(found: CudaDevice, reason: str) -> Execution:
    # By distribution: some builds of torch bring Triton under another name.
    from importlib.metadata import packages_distributions, version

    known = packages_distributions()
    versions = [f"{name} {version(known[name][0])}" for name in PACKAGES if name in known]
    return Execution("cuda", "triton", found.name, ", ".join(versions), reason)


def choose_cpu(device: Device, what: str) -> Execution:
    """The choice of an operation of which nothing is computed on a GPU. what: why, as a sentence without its stop.

    Raises RegistryError `invalid-request` for another device, `unsupported` for `cuda`.
    """
    if device == "cuda":
        raise RegistryError(
            "unsupported",
            f"The device `cuda` was requested, and {what}; nothing of it runs on a GPU.",
            hint="Use --device cpu or --device auto.",
        )
    return choose(device, lambda: Estimate(0.0, None, what))


def require(device: RecipeDevice) -> Execution:
    """The execution on the device of a recipe, which was chosen already. Raises RegistryError `unsupported` if it is
    `cuda` and there is none."""
    return choose(device, lambda: Estimate(0.0, None, "the recipe names the device"))
