"""A LoRA of the difference between a fine-tune and its base, streamed from both checkpoints.

Each tensor is compared once; each that changed and is a target is decomposed by a few more readings of its blocks.
Memory is that of a thread's blocks and sketch, whatever the size of the model; see `linalg.randomized` for the
exception.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import modules_of
from lora_kernels.adapters import AdapterIdentity, adapter_writer
from lora_kernels.adapters.size import Size, stored_type
from lora_kernels.checkpoint.folders import read_base
from lora_kernels.checkpoint.records import Progress
from lora_kernels.checkpoint.sources import FolderSource, Source
from lora_kernels.extracting.change import WeightChange
from lora_kernels.extracting.factors import Extracted, extract_module
from lora_kernels.extracting.leftovers import reason, save_whole
from lora_kernels.extracting.pairs import Pair, Pairs, pair_tensors
from lora_kernels.extracting.report import ExtractedModule, ExtractReport, UnheldChange
from lora_kernels.extracting.targets import choose, running_path
from lora_kernels.numeric.blas import one_thread

_COPIED: Final = 1 << 18
_TASKS: Final = (("ForCausalLM", "CAUSAL_LM"), ("LMHeadModel", "CAUSAL_LM"))

Outcome = Extracted | UnheldChange | None
"""None: the tensor did not change."""


def extract_folders(
    tuned_dir: str | os.PathLike[str], base_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str], **options: Any
) -> ExtractReport:
    """`extract` between model folders. options: as `extract` takes them."""
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
) -> ExtractReport:
    """Write the adapter folder `out_dir`, which appears whole or not at all, and say what it holds and what it lacks.

    rank, keep_energy, max_rank: see `Size`; a module gets no more than its smaller side. targets: see `choose`.
    save_changed: store whole what changed and has no factors. seed: of the sketches. dtype: of the factors, `float32`,
    `bfloat16` or `float16`. base_name: for the config. threads: tensors done at a time, None for one per processor; the
    bytes do not depend on it. progress: called with bytes compared and bytes in all, from several threads.

    Raises RegistryError as `pair_tensors`, `choose` and `adapter_writer` do; `rejected` naming the tensor if values
    are not finite, `corrupt` if a file is too short, `invalid-request` for options that do not fit and if no
    target changed.
    """
    size = Size(rank, keep_energy, max_rank)
    run = _Run(tuned, tuned_source, base, base_source, size, targets, seed, stored_type(dtype))
    # The size of the result is known only at the end. It is small beside the checkpoints: a full disk is reported then.
    with adapter_writer(out_dir, run.identity(base_name), dtype=stored_type(dtype)) as writer:
        modules: list[ExtractedModule] = []
        unheld: list[UnheldChange] = []
        with closing(run.outcomes(threads, progress)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Extracted):
                    writer.add(outcome.factors)
                    modules.append(outcome.row)
                elif outcome is not None:
                    unheld.append(outcome)
        if not modules:
            raise _nothing(unheld)
        identical = len(run.paired.pairs) - len(modules) - len(unheld)
        if save_changed:
            adapted = {module.tensor.rpartition(".")[0] for module in modules}
            saved, unheld = save_whole(unheld, adapted, run.paired.pairs, base, run.modules)
            for name, tensor in sorted(saved.tensors.items()):
                writer.add_extra(name, tensor.dtype, tensor.shape, _bytes(tensor, tuned_source))
            writer.identity = replace(
                writer.identity,
                modules_to_save=tuple(saved.modules),
                bias="lora_only" if saved.biases else "none",
            )
    change, rest = (
        math.fsum(norm**2 for norm in norms)
        for norms in ([m.change_norm for m in modules], [m.residual_norm for m in modules])
    )
    return ExtractReport(
        rank=max(module.rank for module in modules),
        kept_energy=1 - rest / change,
        modules=tuple(sorted(modules, key=lambda module: module.module)),
        unheld=tuple(unheld),
        identical=identical,
        derived=run.paired.derived,
        files=writer.files,
    )


class _Run:
    """One extraction: what is compared with what, and to which size."""

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

    def identity(self, base_name: str | None) -> AdapterIdentity:
        """What is known beforehand."""
        return AdapterIdentity(
            base_model=base_name,
            task_type=next((task for end, task in _TASKS if self.base.architecture.endswith(end)), None),
            fan_in_fan_out=any(module.transposed for module in self._chosen.values()),
        )

    def outcomes(self, threads: int | None, progress: Progress | None) -> Generator[Outcome, None, None]:
        """What became of every pair, sorted by name."""
        pairs = self.paired.pairs.values()
        counter = _Counter(sum(pair.base.end - pair.base.start for pair in pairs), progress)

        def one(pair: Pair) -> Outcome:
            outcome = self._tensor(pair)
            counter.add(pair.base.end - pair.base.start)
            return outcome

        with one_thread(), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            futures = deque(pool.submit(one, pair) for pair in pairs)
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
        return extract_module(change, norms, module, path, size=self._size, seed=self._seed, dtype=self._dtype)


class _Counter:
    """Progress over all threads."""

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


def _nothing(unheld: Sequence[UnheldChange]) -> RegistryError:
    if not unheld:
        return RegistryError(
            "invalid-request",
            "The fine-tune is its base: no tensor differs.",
            hint="Give the fine-tuned checkpoint, and the base that it started from.",
        )
    names = ", ".join(change.tensor for change in unheld[:3]) + (" …" if len(unheld) > 3 else "")
    return RegistryError(
        "invalid-request",
        f"None of the targets changed; what did change is {names}.",
        hint="Name other targets, or store changed tensors whole.",
    )
