"""The choice of a merge's device: seconds on the CPU and on a GPU, predicted from the plan.

Seconds of a CPU are its processor time per element, measured on one core of an AMD EPYC (`docs/devices.md`), over the
threads; and what it takes to read and write every byte. A GPU takes, once loaded, the slowest of its
link, the files, hashing, and the tensors that the CPU computes meanwhile. Its figures are assumed: PCIe 4.0, and
kernels that take no time beside it.
"""

from __future__ import annotations

import math
import os
from typing import Final

from lora_contract.devices import Device
from lora_kernels.devices.choice import Estimate, Execution, choose, choose_cpu
from lora_kernels.merging.device.work import kind_of
from lora_kernels.merging.plan import MergePlan, TensorPlan
from lora_kernels.numeric.blocks import matrix
from lora_kernels.types.forms.low_rank import LowRankProduct
from lora_kernels.types.lora.dora import DoraProduct
from lora_kernels.types.lora.stacks import ExpertPart

# Nanoseconds of one core per element: constant, and per unit of rank.
_FUSED: Final = (1.0, 0.015)
_GENERAL: Final = (3.5, 0.02)
_DORA: Final = (5.0, 0.02)
# Further ones. numpy converts float16 slowly.
_F16: Final = 6.0
_FROM_NF4: Final = 1.5
_THROUGH_NF4: Final = 9.0
_TO_NF4: Final = 9.0
# Bytes a second: copied by a core; hashed by a core; over the link in each direction.
_COPIED: Final = 4.6e9
_HASHED: Final = 1.2e9
_LINK: Final = 20e9
# Seconds until torch and CUDA are loaded.
_START: Final = 6.0


def choose_device(plan: MergePlan, device: Device, *, digests: bool = False, threads: int | None = None) -> Execution:
    """Choose where a plan is executed; see `devices.choose`.

    digests, threads: of the execution. Raises RegistryError as `check_device` does as well.
    """
    check_device(plan, device)
    return choose(device, lambda: estimate(plan, digests=digests, threads=threads or os.cpu_count() or 1))


def check_device(plan: MergePlan, device: Device) -> None:
    """Raise RegistryError `unsupported` if `cuda` is requested and no tensor of the merge is computed there."""
    computed = [tensor for shard in plan.shards for tensor in shard.tensors if not tensor.copied]
    if device == "cuda" and not any(kind_of(tensor) for tensor in computed):
        types = ", ".join(sorted({adapter.type for adapter in plan.adapters}))
        choose_cpu(device, f"no change of this merge ({types}, {plan.rounding} rounding) has a kernel")


def estimate(plan: MergePlan, *, digests: bool, threads: int) -> Estimate:
    """Predict both. cuda: None if the device would compute nothing."""
    up = down = 0
    computed = left = 0.0
    rank = 0
    for shard in plan.shards:
        for tensor in shard.tensors:
            if tensor.copied:
                continue
            seconds = _seconds(tensor)
            computed += seconds
            if kind_of(tensor) is None:
                left += seconds
                continue
            rank = max(rank, _rank(tensor))
            stored = tensor.quantized.packed if tensor.quantized is not None else None
            up += stored.end - stored.start if stored is not None else tensor.source_end - tensor.source_start
            down += tensor.end - tensor.start
    hashed = plan.size / _HASHED if digests else 0.0
    copied = plan.size / _COPIED
    # A file is hashed by one core.
    at_once = max(min(threads, len(plan.shards)), 1)
    cpu = max((copied + computed) / threads + hashed / at_once, copied)
    cuda = _START + max(up / _LINK, down / _LINK, copied, hashed / at_once, left / threads)
    what = f"{plan.size / 1e9:.1f} GB written, {down / 1e9:.1f} GB of them computed, rank {rank}, {_method(plan)}"
    return Estimate(cpu, cuda if down else None, what)


def _seconds(tensor: TensorPlan) -> float:
    """Seconds of one core."""
    rank, plain = _rank(tensor), (tensor.source_dtype, tensor.dtype) == ("BF16", "BF16")
    fused = plain and tensor.seed is None and tensor.quantized is None and not tensor.through_nf4
    constant, slope = _GENERAL
    if any(isinstance(delta.update, DoraProduct) for delta in tensor.deltas):
        constant, slope = _DORA
    elif fused and all(isinstance(delta.update, LowRankProduct) for delta in tensor.deltas):
        constant, slope = _FUSED
    if "F16" in (tensor.source_dtype, tensor.dtype):
        constant += _F16
    if tensor.quantized is not None:
        constant += _FROM_NF4
    if tensor.through_nf4:
        constant += _THROUGH_NF4
    if tensor.form is not None:
        constant += _TO_NF4
    return math.prod(tensor.shape) * (constant + slope * rank) * 1e-9


def _rank(tensor: TensorPlan) -> int:
    """The sum of the ranks of the updates."""
    _, columns = matrix(tensor.shape, tensor.columns)
    ranks = []
    for delta in tensor.deltas:
        update = delta.update.product if isinstance(delta.update, DoraProduct) else delta.update
        if isinstance(update, LowRankProduct):
            ranks.append(update.b.shape[1] if len(update.b.shape) > 1 else 0)
        elif isinstance(update, ExpertPart):
            ranks.append(update.stack.a.shape[0] // max(update.stack.experts, 1))
        else:
            ranks.append(columns)
    return sum(ranks)


def _method(plan: MergePlan) -> str:
    tensors = [tensor for shard in plan.shards for tensor in shard.tensors if not tensor.copied]
    named = [
        ("to NF4", any(tensor.form is not None for tensor in tensors)),
        ("onto NF4", any(tensor.through_nf4 for tensor in tensors)),
        ("from quantized weights", any(tensor.quantized is not None for tensor in tensors)),
        ("DoRA", any(isinstance(delta.update, DoraProduct) for tensor in tensors for delta in tensor.deltas)),
    ]
    return ", ".join(name for name, used in named if used) or "sums of low-rank products"
