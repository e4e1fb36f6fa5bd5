"""The stream of an output file, on whichever device a merge runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from lora_kernels.checkpoint.sources import Source
from lora_kernels.devices.choice import Execution
from lora_kernels.merging.plan import MergePlan
from lora_kernels.merging.stats import TensorStats

if TYPE_CHECKING:
    from lora_kernels.devices.accelerator import Accelerator
    from lora_kernels.merging.stream import Chunk


# Each file has its own buffers: 384 MiB of pinned memory, and two waves on the device.
DEVICE_FILES: Final = 4


class ShardStream(NamedTuple):
    """chunks: (file, on_tensor), see `lora_kernels.merging.stream.stream_chunks`. on_device: not on the CPU; then at
    most DEVICE_FILES are streamed at a time."""

    chunks: Callable[[str, Callable[[TensorStats], None]], Generator[Chunk, None, None]]
    on_device: bool


def shard_stream(
    plan: MergePlan,
    *,
    base: Source,
    adapters: Sequence[Source],
    device: Execution | Accelerator,
) -> ShardStream:
    """Bind a plan to its sources and to a device. Loads torch for a device only.

    Args:
        base, adapters: read from several threads on a device.
        device: from `choose_device`, or open.
    """
    if isinstance(device, Execution) and device.device == "cpu":
        from lora_kernels.merging.stream import stream_chunks

        def on_cpu(file: str, on_tensor: Callable[[TensorStats], None]) -> Generator[Chunk, None, None]:
            return stream_chunks(plan, file, base=base, adapters=adapters, on_tensor=on_tensor)

        return ShardStream(on_cpu, on_device=False)
    from lora_kernels.devices.accelerator import Accelerator
    from lora_kernels.merging.device import stream

    accelerator = Accelerator(execution=device) if isinstance(device, Execution) else device

    def on_accelerator(file: str, on_tensor: Callable[[TensorStats], None]) -> Generator[Chunk, None, None]:
        return stream.stream_chunks(
            plan, file, base=base, adapters=adapters, accelerator=accelerator, on_tensor=on_tensor
        )

    return ShardStream(on_accelerator, on_device=True)
