"""Memory and streams of a device: the only code of an execution that depends on the device.

Without CUDA the same calls work on the CPU's memory, in the order in which they are made: the executor then runs
unchanged, with the reference implementation in torch or the kernels in Triton's interpreter. Pinned memory and streams
themselves have not been run: no GPU was there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch

from lora_contract.errors import RegistryError
from lora_kernels.devices.choice import Execution

# The share of the free memory that executions of one process use together; the rest is for temporary tensors.
_SHARE: Final = 0.5
_HOST_MEMORY: Final = 1 << 34
# Triton compiles, and interprets, in one thread at a time.
_launches: Final = threading.Lock()


class Event:
    """A point in a stream."""

    def __init__(self, cuda: Any | None) -> None:
        self.cuda = cuda

    def wait(self) -> None:
        """Block this thread until the stream has passed it."""
        if self.cuda is not None:
            self.cuda.synchronize()


class Stream:
    """Work that a device does in order, beside other streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        stream: Any = torch.cuda.Stream
        self._stream = stream(device) if device.type == "cuda" else None

    @contextmanager
    def current(self) -> Iterator[None]:
        """Enqueue the copies and launches of this thread here."""
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def record(self) -> Event:
        """The point that is reached when all work so far is done."""
        if self._stream is None:
            return Event(None)
        return Event(self._stream.record_event())

    def after(self, event: Event) -> None:
        """Let following work wait for a point of another stream, without blocking this thread."""
        if self._stream is not None and event.cuda is not None:
            self._stream.wait_event(event.cuda)


class Accelerator:
    """A device for one execution. backend: of `lora_kernels.ops`; None for the device's own."""

    def __init__(self, device: str = "cuda", backend: Any = None, *, execution: Execution | None = None) -> None:
        """execution: the record; None for one that says `requested`. Raises RegistryError `unsupported` if torch has no
        such device."""
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise RegistryError(
                "unsupported",
                f"The device `{device}` was requested, and torch {torch.__version__} finds no CUDA device.",
                hint="Install a torch that is built for CUDA and for the driver of this machine, or use --device cpu.",
            )
        if device == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.backend = backend
        self.execution = execution or Execution(
            self.device.type, backend or ("triton" if self.device.type == "cuda" else "torch"), reason="requested"
        )

    def stream(self) -> Stream:
        return Stream(self.device)

    @contextmanager
    def launching(self, stream: Stream | None = None) -> Iterator[None]:
        """Launch operations on a stream, one thread of this process at a time. stream: None for the caller's."""
        with _launches, stream.current() if stream is not None else nullcontext():
            yield

    def finish(self) -> None:
        """Block this thread until the caller's stream has done its work. Raises what the device found wrong there."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def host_buffer(self, size: int) -> torch.Tensor:
        """uint8 (size,) in memory of the host, pinned for a GPU: other memory would be copied once more, by the CPU."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def empty(self, size: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        """A tensor (size,) in the device's memory, not initialized. It belongs to the current stream."""
        return torch.empty(size, dtype=dtype, device=self.device)

    def memory(self) -> int:
        """Bytes that executions of this process may hold on the device together."""
        if self.device.type != "cuda":
            return _HOST_MEMORY
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(_SHARE * free)
