"""The base's bytes, which every merge and every restore start from."""

from __future__ import annotations

import os
from typing import Final, Literal, NamedTuple, get_args

import torch

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.devices.accelerator import Accelerator
from lora_kernels.swap.parameters import Parameter

Keep = Literal["files", "host", "device"]
"""Where the base's bytes of touched tensors are: read again from the files each time, or kept after the first read, in
memory of the host (pinned for a GPU) or of the device. A kept copy has the size of the tensors in the files, once."""

KEEPS: Final[tuple[Keep, ...]] = get_args(Keep)


class Memory(NamedTuple):
    """Bytes held on the host and on the device."""

    host: int
    device: int


class Kept:
    """Reads the base's tensors. For one thread at a time. Raises RegistryError `conflict` if a file has changed since
    this was made, and `corrupt` if one is too short."""

    def __init__(self, source: FolderSource, accelerator: Accelerator, keep: Keep) -> None:
        if keep not in KEEPS:
            raise RegistryError("invalid-request", f"keep is {keep!r}; expected one of {', '.join(KEEPS)}.")
        self.keep = keep
        self._source = source
        self._accelerator = accelerator
        self._kept: dict[tuple[str, int, int], torch.Tensor] = {}
        self._files: dict[str, tuple[int, int]] = {}

    @property
    def memory(self) -> Memory:
        size = sum(known.numel() for known in self._kept.values())
        return Memory(0, size) if self.keep == "device" else Memory(size, 0)

    def hold(self, parameter: Parameter) -> None:
        """Keep a tensor's bytes, unless they are read from the files each time."""
        stored = parameter.stored
        place = (stored.file, stored.start, stored.end)
        if self.keep != "files" and place not in self._kept:
            host = self.read(*place)
            self._kept[place] = host if self.keep == "host" else host.to(self._accelerator.device, copy=True)

    def bytes_of(self, parameter: Parameter) -> torch.Tensor:
        """uint8 (n,): the tensor as stored, on the host or on the device. Not to be written to."""
        stored = parameter.stored
        known = self._kept.get((stored.file, stored.start, stored.end))
        return known if known is not None else self.read(stored.file, stored.start, stored.end)

    def read(self, file: str, start: int, end: int) -> torch.Tensor:
        """uint8 (end - start,): bytes of a file, in new memory of the host."""
        self._check(file)
        host = self._accelerator.host_buffer(end - start)
        self._source.read_into(file, start, memoryview(host.numpy().data))
        return host

    def check(self) -> None:
        """Check that no file that was read so far has changed."""
        for file in list(self._files):
            self._check(file)

    def _check(self, file: str) -> None:
        status = os.fstat(self._source.descriptor(file))
        now = status.st_size, status.st_mtime_ns
        if self._files.setdefault(file, now) != now:
            raise RegistryError(
                "conflict",
                f"{file} of the base has changed since the model was opened; what is merged would not be the pinned "
                "base.",
                hint="Load the model again from an unchanged folder, and open it again.",
                path=file,
            )
