"""Operations on tensors for a GPU, one folder each: contract, plain torch twin, Triton kernel.

`op(...)` checks its arguments, then computes with the kernel where the tensors lie on a GPU and with the twin where
they do not (`dispatch`). This is the only part of the package that imports torch, and Triton only where it is used.
"""

from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.merge_low_rank import MergeJob, merge_low_rank, merge_low_rank_grouped

__all__ = ["LowRank", "MergeJob", "merge_low_rank", "merge_low_rank_grouped"]
