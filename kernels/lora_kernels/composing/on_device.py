"""Dense methods on a device: merged updates by the operations of TIES and DARE, and their triplets.

The other dense methods are merged on the CPU; their triplets, which take most of the time, come from the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

from lora_kernels import ops
from lora_kernels.composing.dense import Deltas, merged_update, truncate
from lora_kernels.composing.module import Compose, Composed, ComposeSettings, Summands
from lora_kernels.devices.accelerator import Accelerator
from lora_kernels.linalg.on_device import DeviceOperator
from lora_kernels.ops import LowRank

Update = Callable[[Summands, ComposeSettings, Accelerator], torch.Tensor]


def on_device(method: str, accelerator: Accelerator) -> Compose:
    """The function of a dense method."""
    stream = accelerator.stream()
    operation = _OPERATIONS.get(method)

    def operator(values: Any) -> DeviceOperator:
        return DeviceOperator.of(values, stream)

    def compose(summands: Summands, settings: ComposeSettings) -> Composed:
        if operation is None:
            host = torch.from_numpy(merged_update(method, Deltas(summands), settings))
            with stream.current():
                update = host.to(accelerator.device)
        else:
            with accelerator.launching(stream):
                update = operation(summands, settings, accelerator)
        found: Any = update
        return truncate(found, summands, settings, operator=operator)

    return compose


def _ties(summands: Summands, settings: ComposeSettings, accelerator: Accelerator) -> torch.Tensor:
    zeros, adapters, weights = _operands(summands, accelerator.device)
    return ops.ties_merge(
        zeros,
        adapters,
        weights=weights,
        density=settings.density,
        majority_sign_method=_majority(settings),
        out=zeros,
        backend=accelerator.backend,
    )


def _dare_linear(summands: Summands, settings: ComposeSettings, accelerator: Accelerator) -> torch.Tensor:
    return _dare(summands, settings, accelerator, None)


def _dare_ties(summands: Summands, settings: ComposeSettings, accelerator: Accelerator) -> torch.Tensor:
    return _dare(summands, settings, accelerator, _majority(settings))


def _dare(summands: Summands, settings: ComposeSettings, accelerator: Accelerator, majority: Any) -> torch.Tensor:
    zeros, adapters, weights = _operands(summands, accelerator.device)
    return ops.dare_merge(
        zeros,
        adapters,
        weights=weights,
        density=settings.density,
        keys=[settings.key(summand, "D") for summand in summands],
        majority_sign_method=majority,
        out=zeros,
        backend=accelerator.backend,
    )


def _operands(summands: Summands, device: torch.device) -> tuple[torch.Tensor, list[LowRank], list[float]]:
    """A zero to merge into, and the updates with their scale in B, as the CPU has them."""
    rows, columns = summands[0].module.b.shape[0], summands[0].module.a.shape[1]
    adapters = [
        LowRank(
            torch.from_numpy(summand.module.b * np.float32(summand.module.scale)).to(device),
            torch.from_numpy(np.ascontiguousarray(summand.module.a)).to(device),
        )
        for summand in summands
    ]
    return torch.zeros((rows, columns), device=device), adapters, [summand.weight for summand in summands]


def _majority(settings: ComposeSettings) -> Any:
    return settings.majority


_OPERATIONS: Final[dict[str, Update]] = {
    "ties_svd": _ties,
    "dare_linear_svd": _dare_linear,
    "dare_ties_svd": _dare_ties,
}
