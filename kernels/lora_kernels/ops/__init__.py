"""Operations on tensors for a GPU, one folder each: contract, reference implementation in torch, Triton kernel.

`op(...)` checks its arguments, then runs the kernel for tensors on a GPU and the reference implementation for others
(`dispatch`). This is the only part of the package that imports torch; Triton is imported only if a kernel runs.
"""

from lora_kernels.ops.dare_merge import dare_merge
from lora_kernels.ops.dequant_blockwise import dequant_blockwise
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.merge_dora import merge_dora
from lora_kernels.ops.merge_low_rank import MergeJob, merge_low_rank, merge_low_rank_grouped
from lora_kernels.ops.merge_quantized import merge_quantized
from lora_kernels.ops.quantized import FourBit, Int8Rows, Nested
from lora_kernels.ops.requantize_nf4 import empty_nf4, requantize_nf4
from lora_kernels.ops.tensor_stats import tensor_stats, tensor_stats_grouped
from lora_kernels.ops.ties_merge import ties_merge

__all__ = [
    "FourBit",
    "Int8Rows",
    "LowRank",
    "MergeJob",
    "Nested",
    "dare_merge",
    "dequant_blockwise",
    "empty_nf4",
    "merge_dora",
    "merge_low_rank",
    "merge_low_rank_grouped",
    "merge_quantized",
    "requantize_nf4",
    "tensor_stats",
    "tensor_stats_grouped",
    "ties_merge",
]
