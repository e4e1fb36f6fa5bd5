"""Stream of one output file, computed on a device: read, copy up, compute and copy down, each in a thread and a stream
of its own.

    up       reads weights with `preadv` straight into pinned buffers, and copies them up
    compute  launches a wave, and reads its sums
    down     copies results down; reads the bytes that no adapter changes; computes the tensors left to the host
    caller   takes the chunks in the order of the file: hashes and writes them

Memory is bounded: two rings of host buffers, and two waves on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

import torch

from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.sources import Source
from lora_kernels.devices.accelerator import Accelerator, Event
from lora_kernels.merging.device.channel import Channel, Stopped, Threads
from lora_kernels.merging.device.compute import Computed, Uploaded, compute_wave
from lora_kernels.merging.device.operands import Operands
from lora_kernels.merging.device.work import WAVE_BYTES, HostTensor, Part, Wave, waves
from lora_kernels.merging.plan import CopiedRange, MergePlan, TensorPlan, shard_header
from lora_kernels.merging.row_ranges import row_ranges
from lora_kernels.merging.shards import DEVICE_FILES
from lora_kernels.merging.stats import TensorStats, tensor_stats
from lora_kernels.merging.stream import Chunk
from lora_kernels.merging.tensor import Buffers, Sums, TensorMerge
from lora_kernels.numeric.blas import on_one_thread

RING: Final = 3
BUFFER_BYTES: Final = 64 << 20
_WAVES: Final = 2


class _Results(NamedTuple):
    wave: Wave
    sent: list[Uploaded]
    found: list[Computed | None]


class Buffer(NamedTuple):
    """Memory of the host, and the copy that still reads it."""

    memory: torch.Tensor
    busy: Event

    def view(self, size: int) -> memoryview:
        return memoryview(self.memory.numpy().data)[:size]


class _Filled(NamedTuple):
    """Bytes in a buffer, there when `ready` has passed."""

    buffer: Buffer
    size: int
    ready: Event
    origin: tuple[str, int] | None


class _Ended(NamedTuple):
    """The end of a wave. tensors: its memory on the device, which another stream must not get before the chunks that
    precede this are taken: only then have all copies from it ended."""

    tensors: object


_Output: TypeAlias = "_Filled | bytes | TensorStats | _Ended"


def stream_chunks(
    plan: MergePlan,
    file: str,
    *,
    base: Source,
    adapters: Sequence[Source],
    accelerator: Accelerator,
    on_tensor: Callable[[TensorStats], None] | None = None,
    wave_bytes: int = WAVE_BYTES,
    buffer_bytes: int = BUFFER_BYTES,
) -> Generator[Chunk, None, None]:
    """Yield the bytes of an output file, like `lora_kernels.merging.stream.stream_chunks`, which has the arguments.

    base, adapters: may be read from several threads. wave_bytes, buffer_bytes: sizes of a wave on the device and of a
    host buffer.
    """
    pipeline = _Pipeline(plan, file, base, adapters, accelerator, wave_bytes, buffer_bytes)
    try:
        yield from pipeline.chunks(on_tensor)
    finally:
        pipeline.close()


class _Pipeline:
    def __init__(
        self,
        plan: MergePlan,
        file: str,
        base: Source,
        adapters: Sequence[Source],
        accelerator: Accelerator,
        wave_bytes: int,
        buffer_bytes: int,
    ) -> None:
        self._plan, self._shard = plan, plan.shard(file)
        self._base, self._adapters = base, adapters
        self._accelerator = accelerator
        largest = accelerator.memory() // (_WAVES * DEVICE_FILES)
        self._waves = list(waves(self._shard, min(wave_bytes, largest), largest))
        self._up, self._compute, self._down = (accelerator.stream() for _ in range(3))
        size = max(min(buffer_bytes, self._shard.size), 1)
        self.threads = Threads()
        rising, falling = ([Buffer(accelerator.host_buffer(size), Event(None)) for _ in range(RING)] for _ in range(2))
        self._size = size
        self._rising: Channel[Buffer] = Channel(self.threads, RING, rising)
        self._falling: Channel[Buffer] = Channel(self.threads, RING, falling)
        self._room: Channel[None] = Channel(self.threads, _WAVES, [None] * _WAVES)
        self._uploaded: Channel[tuple[Wave, list[Uploaded], Event]] = Channel(self.threads, 1)
        self._computed: Channel[tuple[_Results, Event]] = Channel(self.threads, 1)
        self._output: Channel[_Output] = Channel(self.threads, RING)

    def chunks(self, on_tensor: Callable[[TensorStats], None] | None) -> Iterator[Chunk]:
        self.threads.start([self.up, self.compute, self.down])
        ended = 0
        try:
            yield Chunk(memoryview(shard_header(self._shard)), None)
            while ended < len(self._waves):
                item = self._output.get()
                if isinstance(item, _Filled):
                    item.ready.wait()
                    yield Chunk(item.buffer.view(item.size), item.origin)
                    self._falling.put(item.buffer)
                elif isinstance(item, bytes):
                    yield Chunk(memoryview(item), None)
                elif isinstance(item, _Ended):
                    ended += 1
                    del item  # frees the wave's memory before the next one takes its room
                    self._room.put(None)
                elif on_tensor is not None:
                    on_tensor(item)
        except Stopped:
            assert self.threads.error is not None
            raise self.threads.error from None

    def close(self) -> None:
        """End the threads, and wait for the work that they left on the device: its memory is freed afterwards."""
        self.threads.stop()
        for stream in (self._up, self._compute, self._down):
            stream.record().wait()

    def up(self) -> None:
        """Read the weights of each wave, and copy them to the device."""
        for wave in self._waves:
            self._room.get()
            with self._up.current():
                sent = [Uploaded(part, self._send(part)) for part in wave.parts]
            self._uploaded.put((wave, sent, self._up.record()))
            del sent

    def _send(self, part: Part) -> torch.Tensor:
        file, start, end = part.source
        target = self._accelerator.empty(end - start)
        for position in range(start, end, self._size):
            count = min(self._size, end - position)
            buffer = self._rising.get()
            buffer.busy.wait()
            self._base.read_into(file, position, buffer.view(count))
            target[position - start : position - start + count].copy_(buffer.memory[:count], non_blocking=True)
            self._rising.put(Buffer(buffer.memory, self._up.record()))
        return target

    def compute(self) -> None:
        """Launch each wave when its weights have arrived."""
        operands = Operands(self._base, self._readers(), self._accelerator.device)
        for _ in self._waves:
            wave, sent, arrived = self._uploaded.get()
            self._compute.after(arrived)
            with self._accelerator.launching(self._compute):
                found = compute_wave(sent, operands, self._accelerator.backend)
            self._computed.put((_Results(wave, sent, found), self._compute.record()))
            del sent, found

    def down(self) -> None:
        """Fill buffers with the bytes of the file, in order."""
        readers, buffers = self._readers(), Buffers()
        totals = _Totals()
        for _ in self._waves:
            results, computed = self._computed.get()
            self._down.after(computed)
            found = iter(results.found)
            for item in results.wave.items:
                if isinstance(item, CopiedRange):
                    self._copy(item)
                    continue
                result = next(found) if isinstance(item, Part) else None
                if isinstance(item, Part) and result is not None:
                    self._fetch(result)
                    totals.add(result)
                else:
                    self._by_host(item, readers, buffers, totals)
                if isinstance(item, HostTensor) or item.last:
                    if item.tensor.deltas:
                        self._output.put(totals.of(item.tensor))
                    totals = _Totals()
            self._output.put(_Ended(results))
            del results, found

    def _copy(self, item: CopiedRange) -> None:
        for position in range(item.source_start, item.source_end, self._size):
            count = min(self._size, item.source_end - position)
            buffer = self._falling.get()
            self._base.read_into(item.source_file, position, buffer.view(count))
            self._output.put(_Filled(buffer, count, buffer.busy, (item.source_file, position)))

    def _fetch(self, result: Computed) -> None:
        if result.head:
            self._output.put(result.head)
        for start in range(0, result.body.shape[0], self._size):
            part = result.body[start : start + self._size]
            buffer = self._falling.get()
            with self._down.current():
                buffer.memory[: part.shape[0]].copy_(part, non_blocking=True)
            self._output.put(_Filled(buffer, part.shape[0], self._down.record(), None))

    def _by_host(
        self, item: Part | HostTensor, readers: Sequence[FactorReader], buffers: Buffers, totals: _Totals
    ) -> None:
        merge = TensorMerge(item.tensor, self._base, readers)
        ranges = row_ranges(item.tensor) if isinstance(item, HostTensor) else [(item.r0, item.r1)]
        for r0, r1 in ranges:
            sums = Sums()
            for view in on_one_thread(merge.chunks(r0, r1, buffers, sums)):
                self._output.put(bytes(view))
            totals.sums.join(sums)
        totals.replaces = merge.replaces

    def _readers(self) -> list[FactorReader]:
        return [
            FactorReader(source, known.file) for source, known in zip(self._adapters, self._plan.adapters, strict=True)
        ]


class _Totals:
    """Sums over the parts of a tensor, in their order."""

    def __init__(self) -> None:
        self.sums = Sums()
        self.replaces = False

    def add(self, found: Computed) -> None:
        sums = found.sums
        self.sums.add_sums(sums.delta_delta, sums.realised_delta, sums.realised_realised, found.max_delta)

    def of(self, tensor: TensorPlan) -> TensorStats:
        return tensor_stats(tensor, self.sums.total, self.sums.max_delta, replaces=self.replaces)
