"""All Triton kernels, for the test that compiles them and the table of their costs."""

from __future__ import annotations

from lora_kernels.ops import arrange, totals
from lora_kernels.ops.aot import Variant
from lora_kernels.ops.dare_merge import kernel as dare_merge
from lora_kernels.ops.dequant_blockwise import kernel as dequant_blockwise
from lora_kernels.ops.merge_dora import kernel as merge_dora
from lora_kernels.ops.merge_low_rank import kernel as merge_low_rank
from lora_kernels.ops.merge_quantized import kernel as merge_quantized
from lora_kernels.ops.requantize_nf4 import kernel as requantize_nf4
from lora_kernels.ops.tensor_stats import kernel as tensor_stats
from lora_kernels.ops.ties_merge import kernel as ties_merge

KERNELS = (
    arrange,
    merge_low_rank,
    merge_dora,
    tensor_stats,
    ties_merge,
    dare_merge,
    dequant_blockwise,
    merge_quantized,
    requantize_nf4,
    totals,
)


def variants() -> list[Variant]:
    """Every variant that is compiled ahead of time, in a fixed order."""
    return [variant for kernel in KERNELS for variant in kernel.variants()]
