"""What every launch of a kernel on `tables.Tables` needs."""

from __future__ import annotations

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


# The types of the arguments that pass `tables.Tables`, in Triton's spelling.
TABLE_TYPES: Final = {"jobs": "*i64", "factors": "*i64", "scales": "*fp32", "owners": "*i32"}


def native_dot(factor: torch.dtype) -> bool:
    """Whether stored factors go to the matrix units as they are. Never in the interpreter, whose dot on bf16 is
    garbage; never for float32, which the matrix units would cut to tf32."""
    return factor != torch.float32 and not interpreted()


def low_rank_constants(factor: torch.dtype, config: LaunchConfig, *, aligned: bool) -> dict[str, Any]:
    """The compile-time arguments that all kernels with low-rank factors have."""
    return {
        "FACTOR": ELEMENTS[factor],
        "NATIVE": native_dot(factor),
        "ALIGNED": aligned,
        "BLOCK_ROWS": config.rows,
        "BLOCK_COLUMNS": config.columns,
        "BLOCK_RANK": config.rank,
    }


def on(device: torch.device) -> AbstractContextManager[object]:
    """Launches inside go to this GPU: Triton launches on the current one, wherever the tensors lie."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def options(config: LaunchConfig) -> dict[str, Any]:
    """Compiler options. Fusion of products and sums is off: each is rounded as on a CPU, and a release of Triton with
    another default changes no result."""
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": False}
