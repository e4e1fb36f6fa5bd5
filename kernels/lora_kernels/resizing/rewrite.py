"""Rewriting of an adapter folder module by module, shared by resize and convert."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lora_contract.tensors import DTYPE_BYTES
from lora_kernels.adapters import AdapterIdentity, AdapterReader, AdapterWriter, adapter_writer, open_adapter, widest
from lora_kernels.adapters.low_rank import LowRankModule
from lora_kernels.adapters.rounding import stored_values
from lora_kernels.checkpoint.records import Progress
from lora_kernels.linalg.factored import distance, product_norm
from lora_kernels.numeric.blas import one_thread

F64 = npt.NDArray[np.float64]
_T = TypeVar("_T")


class Rewrite:
    """An open adapter and the one that replaces it. dtype: stored dtype of the new factors."""

    def __init__(self, reader: AdapterReader, writer: AdapterWriter, dtype: str) -> None:
        self.reader = reader
        self.writer = writer
        self.dtype = dtype

    def each(
        self, rewrite: Callable[[str], _T], threads: int | None, progress: Progress | None
    ) -> Generator[_T, None, None]:
        """Yield `rewrite(path)` for each module, in order of paths. progress: called with modules done and in total."""
        modules = self.reader.modules
        with one_thread(), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            futures = deque(pool.submit(rewrite, module) for module in modules)
            try:
                while futures:
                    yield futures.popleft().result()
                    if progress is not None:
                        progress(len(modules) - len(futures), len(modules))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def factors(self, module: LowRankModule, b: F64, a: F64) -> LowRankModule:
        """The module with new factors of scale 1, rounded to the stored dtype."""
        return LowRankModule(
            module.module, module.kind, stored_values(a, self.dtype), stored_values(b, self.dtype), inputs=module.inputs
        )

    def copy_extras(self) -> tuple[str, ...]:
        """Copy the tensors that are not factors. Returns their names."""
        for extra in self.reader.extras:
            tensor = extra.factor
            self.reader.check_finite(tensor)
            self.writer.add_extra(tensor.name, tensor.dtype, tensor.shape, [self.reader.raw(tensor)])
        return tuple(sorted(extra.factor.name for extra in self.reader.extras))


@contextmanager
def rewriting(
    adapter_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str], dtype: str | None
) -> Iterator[Rewrite]:
    """Open an adapter folder and a new one, which appears when the block succeeds. dtype: stored dtype, such as BF16;
    None for the narrowest that holds the adapter's factors exactly."""
    with open_adapter(adapter_dir) as reader:
        config = reader.config
        identity = AdapterIdentity.of(config, parts=reader.parts)
        identity = replace(identity, modules_to_save=tuple(config.modules_to_save), bias=config.bias)
        shapes = [reader.shape(module) for module in reader.modules]
        dtype = dtype or widest([shape.dtype for shape in shapes])
        needed = DTYPE_BYTES[dtype] * sum(shape.rank * (shape.columns + shape.outputs) for shape in shapes)
        with adapter_writer(out_dir, identity, dtype=dtype, needed=needed) as writer:
            yield Rewrite(reader, writer, dtype)


def wide(module: LowRankModule) -> tuple[F64, F64]:
    """(b times scale, a) in float64."""
    return module.scale * module.b.astype(np.float64), module.a.astype(np.float64)


def relative_error(before: tuple[F64, F64], after: LowRankModule) -> float:
    """||b a - b' a'|| / ||b a||; 0 if the factors are equal or the product is zero."""
    now = after.b.astype(np.float64), after.a.astype(np.float64)
    if all(np.array_equal(*pair) for pair in zip(before, now, strict=True)):
        return 0.0
    norm = product_norm(*before)
    return distance(before, now) / norm if norm > 0 else 0.0
