"""A merge into tensors that stay in a device's memory: nothing is written, and nothing is read back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch

from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.devices.accelerator import Accelerator
from lora_kernels.merging.base_copies import check_base_copies
from lora_kernels.merging.device.compute import Uploaded, compute_wave
from lora_kernels.merging.device.operands import DTYPES, Operands
from lora_kernels.merging.device.work import Part, kind_of
from lora_kernels.merging.folder import plan_folder
from lora_kernels.merging.plan import MergePlan, TensorPlan
from lora_kernels.merging.row_ranges import row_ranges
from lora_kernels.merging.stats import MergeReport, TensorStats, merge_report, tensor_stats
from lora_kernels.merging.tensor import Buffers, Sums, TensorMerge
from lora_kernels.numeric.blas import on_one_thread
from lora_kernels.numeric.blocks import matrix

_INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_OTHERS = {"BOOL": torch.bool, "F64": torch.float64, **_INTEGERS}


class Resident(NamedTuple):
    """A merged checkpoint. tensors: by their names in the files, on the device."""

    plan: MergePlan
    tensors: dict[str, torch.Tensor]
    report: MergeReport


def merge_resident(
    base_dir: str | os.PathLike[str],
    adapters: Sequence[tuple[str | os.PathLike[str], float]],
    *,
    accelerator: Accelerator,
    dtype: str | None = None,
    onto: str = "fp",
) -> Resident:
    """Merge adapter folders, each with its weight, into a base's tensors.

    dtype, onto: see `plan_merge`; `nf4` is not an output here. Raises as `merge_folder` does, except that any loss in
    rounding is allowed.
    """
    plan = plan_folder(base_dir, adapters, dtype=dtype, onto=onto)
    with ExitStack() as stack:
        base = stack.enter_context(FolderSource(base_dir))
        sources = [stack.enter_context(FolderSource(folder)) for folder, _ in adapters]
        check_base_copies(plan, base=base, adapters=sources)
        readers = [FactorReader(source, known.file) for source, known in zip(sources, plan.adapters, strict=True)]
        merging = ResidentMerge(base, readers, accelerator)
        tensors = {
            tensor.stored or tensor.name: merging.tensor(tensor).values
            for shard in plan.shards
            for tensor in shard.tensors
        }
    ignored = [name for adapter in plan.adapters for name in adapter.ignored]
    return Resident(plan, tensors, merge_report(merging.stats, ignored=ignored, execution=accelerator.execution))


class MergedTensor(NamedTuple):
    """values: the tensor in its own shape, on the device. part: what an operation computed; None if nothing was to be
    computed, or the host did it."""

    values: torch.Tensor
    part: Part | None


class ResidentMerge:
    """Merges tensor by tensor, into memory of the device. For one thread.

    Attributes:
        operands: the factors of the adapters, on the device.
        stats: of the touched tensors so far.
    """

    def __init__(self, base: FolderSource, readers: Sequence[FactorReader], accelerator: Accelerator) -> None:
        self._base, self._readers, self._accelerator = base, readers, accelerator
        self.operands = Operands(base, readers, accelerator.device)
        self._stream = accelerator.stream()
        self._buffers = Buffers()
        self.stats: list[TensorStats] = []

    def tensor(self, tensor: TensorPlan) -> MergedTensor:
        """Merge one tensor of the plan. Raises as `merge_resident` does."""
        kind = kind_of(tensor)
        body, computed = None, None
        if tensor.copied:
            body = self._up(tensor.source_file, tensor.source_start, tensor.source_end)
        elif kind is not None:
            rows, _ = matrix(tensor.shape, tensor.columns)
            part = Part(tensor, kind, 0, rows, last=True)
            raw = self._up(*part.source)
            with self._accelerator.launching(self._stream):
                (found,) = compute_wave([Uploaded(part, raw)], self.operands, self._accelerator.backend)
            if found is not None:
                body, computed = found.body, part
                if tensor.deltas:
                    self.stats.append(tensor_stats(tensor, found.sums, found.max_delta, replaces=False))
        if body is None:
            body = self._by_host(tensor)
        self._stream.record().wait()
        values = body.view(DTYPES.get(tensor.dtype) or _OTHERS[tensor.dtype]).reshape(tensor.shape)
        return MergedTensor(values, computed)

    def _up(self, file: str, start: int, end: int) -> torch.Tensor:
        host = self._accelerator.host_buffer(end - start)
        self._base.read_into(file, start, memoryview(host.numpy().data))
        with self._stream.current():
            return host.to(self._accelerator.device, copy=True)

    def _by_host(self, tensor: TensorPlan) -> torch.Tensor:
        merge, total = TensorMerge(tensor, self._base, self._readers), Sums()
        written = bytearray()
        for r0, r1 in row_ranges(tensor):
            sums = Sums()
            for view in on_one_thread(merge.chunks(r0, r1, self._buffers, sums)):
                written += view
            total.join(sums)
        if tensor.deltas:
            self.stats.append(merge.stats(total))
        with self._stream.current():
            return torch.frombuffer(written, dtype=torch.uint8).to(self._accelerator.device, copy=True)
