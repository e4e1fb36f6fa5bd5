"""The change of a tensor in a device's memory: both tensors are read once, and every pass over them runs there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from lora_contract.base import BaseTensor
from lora_kernels.checkpoint.sources import Source
from lora_kernels.devices.accelerator import Accelerator
from lora_kernels.extracting.change import WeightChange
from lora_kernels.linalg.on_device import DeviceOperator
from lora_kernels.linalg.operators import Operator

_DTYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


class DeviceChanges:
    """Makes operators on a device, one at a time: another thread compares the next tensor meanwhile."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._stream = accelerator.stream()
        self._lock = threading.Lock()

    @contextmanager
    def operator(self, change: WeightChange) -> Iterator[Operator]:
        """The operator of a change, valid in the block. Raises RegistryError `corrupt` if a file is too short."""
        with self._lock:
            tuned, base = (self._load(tensor, source) for tensor, source in change.stored)
            shape = change.rows, change.columns

            def rows(r0: int, r1: int) -> torch.Tensor:
                # Float32 first, as on the CPU: it matters for float64 tensors only.
                after, before = (part.reshape(shape)[r0:r1].float().double() for part in (tuned, base))
                return after - before

            yield DeviceOperator(*shape, rows, self._accelerator.device, self._stream)

    def _load(self, tensor: BaseTensor, source: Source) -> torch.Tensor:
        host = self._accelerator.host_buffer(tensor.end - tensor.start)
        source.read_into(tensor.file, tensor.start, memoryview(host.numpy().data))
        with self._stream.current():
            stored = host.to(self._accelerator.device)
        return stored.view(_DTYPES[tensor.dtype])
