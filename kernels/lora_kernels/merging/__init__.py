"""Merge adapters into a base checkpoint, tensor by tensor, in bounded memory.

`plan_merge` plans a merge from headers alone; `stream_shard` yields the bytes of one output file, for any sink;
`merge_folder` merges folders. Only execution loads numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lora_kernels.checkpoint.folders import AdapterInput
from lora_kernels.checkpoint.records import FileRecord
from lora_kernels.checkpoint.sinks import FolderSink, Hashing, Sink
from lora_kernels.checkpoint.sources import FolderSource, RangeSource, Source
from lora_kernels.merging.base_copies import check_base_copies
from lora_kernels.merging.dequantized import dequantized
from lora_kernels.merging.device.cost import check_device, choose_device
from lora_kernels.merging.folder import merge_folder, merged_config, merged_index, plan_folder
from lora_kernels.merging.plan import MergePlan, plan_merge, shard_size
from lora_kernels.merging.stats import MergeReport, TensorStats, check_kept, merge_report
from lora_kernels.quantized.reading import read_quantized

__all__ = [
    "AdapterInput",
    "FileRecord",
    "FolderSink",
    "FolderSource",
    "Hashing",
    "MergePlan",
    "MergeReport",
    "RangeSource",
    "Sink",
    "Source",
    "TensorStats",
    "check_base_copies",
    "check_device",
    "check_kept",
    "choose_device",
    "dequantized",
    "merge_folder",
    "merge_report",
    "merged_config",
    "merged_index",
    "plan_folder",
    "plan_merge",
    "read_quantized",
    "shard_size",
    "stream_shard",
]


def stream_shard(
    plan: MergePlan,
    file: str,
    *,
    base: Source,
    adapters: Sequence[Source],
    on_tensor: Callable[[TensorStats], None] | None = None,
) -> Iterator[memoryview]:
    """See `lora_kernels.merging.stream.stream_shard`, which is imported, with numpy, on the first call."""
    from lora_kernels.merging import stream

    return stream.stream_shard(plan, file, base=base, adapters=adapters, on_tensor=on_tensor)
