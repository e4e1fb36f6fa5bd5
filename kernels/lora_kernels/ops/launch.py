"""Shared code of all launches of kernels on `tables.Tables`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
import triton.language as tl

from lora_kernels.ops.configs import LaunchConfig
from lora_kernels.ops.dispatch import interpreted

ELEMENTS: Final[dict[torch.dtype, Any]] = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
}


# The types of the arguments of `tables.Tables`, in Triton's notation.
TABLE_TYPES: Final = {"jobs": "*i64", "factors": "*i64", "scales": "*fp32", "owners": "*i32"}


def native_dot(factor: torch.dtype) -> bool:
    """Whether the matrix units multiply factors as stored. Not in the interpreter, whose bf16 dot is wrong; not for
    float32, which the matrix units would truncate to tf32."""
    return factor != torch.float32 and not interpreted()


def low_rank_constants(factor: torch.dtype, config: LaunchConfig, *, aligned: bool) -> dict[str, Any]:
    """The compile-time arguments of all kernels with low-rank factors."""
    return {
        "FACTOR": ELEMENTS[factor],
        "NATIVE": native_dot(factor),
        "ALIGNED": aligned,
        "BLOCK_ROWS": config.rows,
        "BLOCK_COLUMNS": config.columns,
        "BLOCK_RANK": config.rank,
    }


def on(device: torch.device) -> AbstractContextManager[object]:
    """A context that launches on this GPU: Triton launches on the current one, whatever the device of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def options(config: LaunchConfig) -> dict[str, Any]:
    """Compiler options. Fused multiply-add is disabled: each product and sum is rounded as on a CPU, and results do not
    depend on Triton's default."""
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": False}


def upload(values: Sequence[object] | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Copy values to the device, from pinned memory for a GPU, so that the host does not wait for it."""
    host = torch.as_tensor(values, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
