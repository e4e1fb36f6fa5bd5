"""Statistics of a tensor in one read: sum of squares, largest absolute element, number of non-finite elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.ops.dispatch import Backend, choose
from lora_kernels.ops.low_rank import check_dtype
from lora_kernels.ops.tensor_stats.summary import Summary

__all__ = ["Summary", "tensor_stats", "tensor_stats_grouped"]


def tensor_stats(tensor: torch.Tensor, *, backend: Backend | None = None) -> Summary:
    """Statistics of a tensor: bf16, fp16 or fp32, any shape and strides; tensors with gaps are copied unless they are
    matrices. backend: None to choose it by the tensor's device. Raises RegistryError `invalid-request` for other
    dtypes, `unsupported` if Triton is requested and cannot run."""
    return tensor_stats_grouped([tensor], backend=backend)[0]


def tensor_stats_grouped(tensors: Sequence[torch.Tensor], *, backend: Backend | None = None) -> list[Summary]:
    """Statistics of many tensors, with one launch per dtype. Results are in the order of the tensors."""
    for index, tensor in enumerate(tensors):
        check_dtype(tensor, name=f"Tensor {index}")
    groups: dict[object, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    results: dict[int, Summary] = {}
    for indices in groups.values():
        chosen = [tensors[index] for index in indices]
        if choose(chosen[0].device, backend) == "triton":
            from lora_kernels.ops.tensor_stats import kernel

            results |= zip(indices, kernel.summaries(chosen), strict=True)
        else:
            from lora_kernels.ops.tensor_stats import in_torch as reference

            results |= zip(indices, reference.summaries(chosen), strict=True)
    return [results[index] for index in range(len(tensors))]
