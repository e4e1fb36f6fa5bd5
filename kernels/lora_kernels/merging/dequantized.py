"""What a merge makes of the quantized weights of its base, in words."""

from __future__ import annotations

from collections import Counter

from lora_contract.tensors import DTYPE_NAMES
from lora_kernels.merging.plan import MergePlan


def dequantized(plan: MergePlan) -> str | None:
    """Say how many weights of which format get which dtype; None if none is dequantized."""
    names = {short: name for name, short in DTYPE_NAMES.items()}
    found = Counter(
        (tensor.quantized.scheme, names.get(tensor.dtype, tensor.dtype.lower()))
        for shard in plan.shards
        for tensor in shard.tensors
        if tensor.quantized is not None
    )
    parts = [
        f"{count} {'weight' if count == 1 else 'weights'} of {scheme} as {dtype}"
        for (scheme, dtype), count in sorted(found.items())
    ]
    return ", ".join(parts) or None
