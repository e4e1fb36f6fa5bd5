"""Extraction of a LoRA from the difference between a fine-tune and its base, streamed from both checkpoints.

Each tensor is compared once; changed targets are then read a few more times to decompose them. Memory is that of the
threads' blocks and sketches, whatever the size of the model; for the exception see `linalg.randomized`.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.devices import Device
from lora_contract.errors import RegistryError
from lora_contract.modules import modules_of
from lora_contract.pipelines import is_pipeline
from lora_kernels.adapters import AdapterIdentity, adapter_writer
from lora_kernels.adapters.size import Size, stored_dtype
from lora_kernels.checkpoint.folders import read_base
from lora_kernels.checkpoint.records import Progress
from lora_kernels.checkpoint.sources import FolderSource, Source
from lora_kernels.devices.choice import Execution
from lora_kernels.extracting.change import WeightChange
from lora_kernels.extracting.cost import choose_device
from lora_kernels.extracting.factors import Extracted, extract_module
from lora_kernels.extracting.leftovers import reason, save_whole
from lora_kernels.extracting.pairs import Pair, Pairs, pair_tensors
from lora_kernels.extracting.report import ExtractedModule, ExtractReport, UnheldChange
from lora_kernels.extracting.targets import choose, running_path
from lora_kernels.linalg.operators import Operator, Streamed
from lora_kernels.linalg.randomized import FIRST_WIDTH
from lora_kernels.numeric.blas import one_thread

if TYPE_CHECKING:
    from lora_kernels.devices.accelerator import Accelerator

_COPIED: Final = 1 << 18
_TASKS: Final = (("ForCausalLM", "CAUSAL_LM"), ("LMHeadModel", "CAUSAL_LM"))

Outcome = Extracted | UnheldChange | None
"""None: the tensor did not change."""


def extract_folders(
    tuned_dir: str | os.PathLike[str], base_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str], **options: Any
) -> ExtractReport:
    """Run `extract` on model folders. options: those of `extract`."""
    tuned, _ = read_base(tuned_dir)
    base, _ = read_base(base_dir)
    with FolderSource(tuned_dir) as tuned_source, FolderSource(base_dir) as base_source:
        return extract(tuned, tuned_source, base, base_source, out_dir, **options)


def extract(
    tuned: BaseFingerprint,
    tuned_source: Source,
    base: BaseFingerprint,
    base_source: Source,
    out_dir: str | os.PathLike[str],
    *,
    rank: int | None = None,
    keep_energy: float | None = None,
    max_rank: int | None = None,
    targets: Sequence[str] | str | None = None,
    save_changed: bool = False,
    seed: int = 0,
    dtype: str = "float32",
    base_name: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    device: Device | Accelerator = "cpu",
) -> ExtractReport:
    """Write the adapter folder `out_dir`, which appears complete or not at all.

    Args:
        rank, keep_energy, max_rank: see `Size`; a module's rank is at most its smaller side.
        targets: see `choose`.
        save_changed: store changed tensors that have no factors in full.
        seed: of the sketches.
        dtype: of the factors: `float32`, `bfloat16` or `float16`.
        base_name: for the adapter's config.
        threads: tensors processed at a time, None for one per processor; the bytes do not depend on it.
        progress: called with bytes compared and bytes in total, from several threads.
        device: `cpu`, `cuda`, `auto` for the one that is predicted to be faster, or an open device. A GPU decomposes;
            its result agrees with the CPU's to rounding.

    Raises RegistryError as `pair_tensors`, `choose`, `devices.choose` and `adapter_writer` do; `rejected`, with the
    name of the tensor, if values are not finite, `corrupt` if a file is too short, `invalid-request` for inconsistent
    options and if no target changed.
    """
    size = Size(rank, keep_energy, max_rank)
    if save_changed and is_pipeline(base.config):
        raise RegistryError(
            "unsupported",
            f"The base is a pipeline ({base.architecture}): its adapters hold factors alone, no whole tensors.",
            hint="Extract without --save-changed, or extract the adapter of one component.",
        )
    extraction = _Extraction(tuned, tuned_source, base, base_source, size, targets, seed, stored_dtype(dtype))
    extraction.use(device, threads)
    # The output size is not known in advance, but small compared with the checkpoints: the writer reports a full disk.
    with adapter_writer(out_dir, extraction.identity(base_name), dtype=stored_dtype(dtype)) as writer:
        modules: list[ExtractedModule] = []
        unheld: list[UnheldChange] = []
        with closing(extraction.outcomes(threads, progress)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Extracted):
                    writer.add(outcome.factors)
                    modules.append(outcome.row)
                elif outcome is not None:
                    unheld.append(outcome)
        if not modules:
            raise _no_target_changed(unheld)
        identical = len(extraction.paired.pairs) - len(modules) - len(unheld)
        if save_changed:
            adapted = {module.tensor.rpartition(".")[0] for module in modules}
            saved, unheld = save_whole(unheld, adapted, extraction.paired.pairs, base, extraction.modules)
            for name, tensor in sorted(saved.tensors.items()):
                writer.add_extra(name, tensor.dtype, tensor.shape, _bytes(tensor, tuned_source))
            writer.identity = replace(
                writer.identity,
                modules_to_save=tuple(saved.modules),
                bias="lora_only" if saved.biases else "none",
            )
    change, residual = (
        math.fsum(norm**2 for norm in norms)
        for norms in ([m.change_norm for m in modules], [m.residual_norm for m in modules])
    )
    return ExtractReport(
        rank=max(module.rank for module in modules),
        kept_energy=1 - residual / change,
        modules=tuple(sorted(modules, key=lambda module: module.module)),
        unheld=tuple(unheld),
        identical=identical,
        derived=extraction.paired.derived,
        files=writer.files,
        execution=extraction.execution,
    )


class _Extraction:
    """One extraction: its tensor pairs, targets and options."""

    def __init__(
        self,
        tuned: BaseFingerprint,
        tuned_source: Source,
        base: BaseFingerprint,
        base_source: Source,
        size: Size,
        targets: Sequence[str] | str | None,
        seed: int,
        dtype: str,
    ) -> None:
        self.base = base
        self.paired: Pairs = pair_tensors(tuned, base)
        self.modules = modules_of(base)
        self._chosen = choose(base, targets)
        self._sources = tuned_source, base_source
        self._size = size
        self._seed = seed
        self._dtype = dtype
        self.execution = Execution()
        self._operator: Callable[[WeightChange], AbstractContextManager[Operator]] = _streamed

    def use(self, device: Device | Accelerator, threads: int | None) -> None:
        """Choose the device. Raises as `devices.choose` does."""
        if isinstance(device, str):
            rank = self._size.rank or self._size.max_rank or FIRST_WIDTH
            pairs = self.paired.pairs
            targets = [pairs[name].base for name in self._chosen if name in pairs]
            self.execution = choose_device(targets, [pair.base for pair in pairs.values()], rank, device, threads)
            if self.execution.device == "cpu":
                return
        from lora_kernels.devices.accelerator import Accelerator
        from lora_kernels.extracting.on_device import DeviceChanges

        accelerator = Accelerator(execution=self.execution) if isinstance(device, str) else device
        self.execution = accelerator.execution
        self._operator = DeviceChanges(accelerator).operator

    def identity(self, base_name: str | None) -> AdapterIdentity:
        """The adapter's identity, as far as it is known in advance."""
        return AdapterIdentity(
            base_model=base_name,
            task_type=next((task for end, task in _TASKS if self.base.architecture.endswith(end)), None),
            fan_in_fan_out=any(module.transposed for module in self._chosen.values()),
            parts=is_pipeline(self.base.config),
        )

    def outcomes(self, threads: int | None, progress: Progress | None) -> Generator[Outcome, None, None]:
        """Yield the outcome of each pair, sorted by name."""
        pairs = self.paired.pairs.values()
        counter = _Counter(sum(pair.base.end - pair.base.start for pair in pairs), progress)

        def process(pair: Pair) -> Outcome:
            outcome = self._tensor(pair)
            counter.add(pair.base.end - pair.base.start)
            return outcome

        with one_thread(), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            futures = deque(pool.submit(process, pair) for pair in pairs)
            try:
                while futures:
                    yield futures.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _tensor(self, pair: Pair) -> Outcome:
        change = WeightChange(pair, *self._sources)
        if change.identical():
            return None
        norms = change.norms()
        if norms.change == 0:
            return None
        module = self._chosen.get(pair.name)
        if module is None:
            why = reason(pair.name, self.modules)
            return UnheldChange(pair.name, why, False, norms.change, norms.relative)
        path = running_path(self.base, self.modules, module.path)
        with self._operator(change) as operator:
            return extract_module(
                change, operator, norms, module, path, size=self._size, seed=self._seed, dtype=self._dtype
            )


def _streamed(change: WeightChange) -> AbstractContextManager[Operator]:
    return nullcontext(Streamed(change))


class _Counter:
    """Progress of all threads."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total)


def _bytes(tensor: BaseTensor, source: Source) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_COPIED))
    for start in range(tensor.start, tensor.end, _COPIED):
        chunk = buffer[: min(_COPIED, tensor.end - start)]
        source.read_into(tensor.file, start, chunk)
        yield chunk


def _no_target_changed(unheld: Sequence[UnheldChange]) -> RegistryError:
    if not unheld:
        return RegistryError(
            "invalid-request",
            "The fine-tune equals its base: no tensor differs.",
            hint="Give the fine-tuned checkpoint, and the base that it started from.",
        )
    names = ", ".join(change.tensor for change in unheld[:3]) + (" …" if len(unheld) > 3 else "")
    return RegistryError(
        "invalid-request",
        f"No target changed; these tensors did: {names}.",
        hint="Add some of these tensors to the targets; an adapter needs at least one module with factors.",
    )
