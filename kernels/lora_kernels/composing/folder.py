"""Composition of adapter folders, module by module, into a new one."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from lora_contract.devices import Device
from lora_contract.errors import RegistryError
from lora_contract.methods import DEFAULT_METHOD, check_parameters, find_method
from lora_contract.tensors import DTYPE_BYTES
from lora_kernels.adapters import AdapterIdentity, AdapterReader, LowRankModule, adapter_writer, open_adapter, widest
from lora_kernels.adapters.size import stored_dtype
from lora_kernels.checkpoint.records import Progress
from lora_kernels.composing.cost import choose_device
from lora_kernels.composing.dense import DENSE
from lora_kernels.composing.factorwise import FACTORWISE
from lora_kernels.composing.module import Compose, Composed, ComposeSettings, Summand
from lora_kernels.composing.report import ComposedModule, ComposeReport
from lora_kernels.composing.spectral import SPECTRAL
from lora_kernels.devices.choice import Execution
from lora_kernels.numeric.blas import one_thread

if TYPE_CHECKING:
    from lora_kernels.devices.accelerator import Accelerator

METHOD_FUNCTIONS: Final[dict[str, Compose]] = {**FACTORWISE, **SPECTRAL, **DENSE}

_T = TypeVar("_T")


def compose_folders(
    adapters: Sequence[tuple[str | os.PathLike[str], float]],
    out_dir: str | os.PathLike[str],
    *,
    method: str = DEFAULT_METHOD,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    device: Device | Accelerator = "cpu",
) -> ComposeReport:
    """Compose adapter folders, each with its weight, into the folder `out_dir`, which appears complete or not at all.

    Args:
        method, parameters: see `lora_contract.methods`.
        seed: of randomized methods.
        dtype: `float32`, `bfloat16` or `float16`; None for the narrowest that holds all factors of the inputs exactly.
        threads: modules composed at a time, None for one per processor; the bytes do not depend on it.
        progress: called with modules done and modules in total.
        device: `cpu`, `cuda`, `auto` for the one that is predicted to be faster, or an open device. A GPU computes
            dense methods; its result agrees with the CPU's to rounding.

    Raises RegistryError as `check_parameters`, `open_adapter`, `adapter_writer` and `choose_device` do; `rejected` if
    the inputs do not fit each other, `unsupported` if one contains more than factors, `invalid-request` for weights
    that are not finite.
    """
    with ExitStack() as stack:
        readers = [(stack.enter_context(open_adapter(folder)), weight) for folder, weight in adapters]
        return compose_adapters(
            readers,
            out_dir,
            method=method,
            parameters=parameters,
            seed=seed,
            dtype=dtype,
            threads=threads,
            progress=progress,
            device=device,
        )


def compose_adapters(
    adapters: Sequence[tuple[AdapterReader, float]],
    out_dir: str | os.PathLike[str],
    *,
    method: str = DEFAULT_METHOD,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    device: Device | Accelerator = "cpu",
) -> ComposeReport:
    """Like `compose_folders`, for open adapters."""
    checked = check_parameters(method, parameters or {})
    _check_weights([weight for _, weight in adapters])
    ignored = [name for index, (reader, _) in enumerate(adapters) for name in _ignored(index, reader)]
    inputs = _inputs([reader for reader, _ in adapters])
    shapes = [adapters[index][0].shape(path) for path, indices in inputs.items() for index in indices]
    settings = ComposeSettings(checked, seed, max((shape.rank for shape in shapes), default=1))
    stored = widest([shape.dtype for shape in shapes]) if dtype is None else stored_dtype(dtype)
    modules = [[adapters[index][0].shape(path) for index in indices] for path, indices in inputs.items()]
    execution = (
        choose_device(method, modules, settings, device, threads) if isinstance(device, str) else device.execution
    )
    function = _function(method, execution if isinstance(device, str) else device)

    def compose(path: str) -> tuple[Composed, LowRankModule] | None:
        summands = [Summand(index, adapters[index][1], adapters[index][0].load(path)) for index in inputs[path]]
        summands = [summand for summand in summands if summand.module.rank]
        if not summands:
            return None
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # the writer refuses non-finite values
            composed = function(summands, settings)
        like = summands[0].module
        return composed, LowRankModule(path, like.kind, composed.a, composed.b, inputs=like.inputs)

    # The upper bound: `cat` and the exact sum need the sum of a module's ranks.
    needed = DTYPE_BYTES[stored] * sum(shape.rank * (shape.columns + shape.outputs) for shape in shapes)
    composed: list[ComposedModule] = []
    energies: list[tuple[float, float]] = []
    identity = _identity([reader for reader, _ in adapters])
    with (
        adapter_writer(out_dir, identity, dtype=stored, needed=needed) as writer,
        closing(_in_order(compose, list(inputs), threads)) as results,
    ):
        for path, result in zip(inputs, results, strict=True):
            rank = result[1].rank if result is not None else 0
            kept = result[0].kept if result is not None else None
            if result is not None and rank:
                writer.add(result[1])
            if result is not None and kept is not None:
                energies.append((result[0].energy, kept))
            composed.append(ComposedModule(path, inputs[path], rank, kept))
            if progress is not None:
                progress(len(composed), len(inputs))
    energy = math.fsum(energy for energy, _ in energies)
    chosen = find_method(method)
    return ComposeReport(
        method=method,
        version=chosen.version,
        parameters=checked,
        seed=seed if chosen.seeded else None,
        rank=max(module.rank for module in composed),
        kept=math.fsum(exact * kept for exact, kept in energies) / energy if energy > 0 else None,
        modules=tuple(composed),
        ignored=tuple(ignored),
        files=writer.files,
        execution=execution,
    )


def _function(method: str, device: Execution | Accelerator) -> Compose:
    """The method's function on a device. Loads torch for a device other than the CPU only."""
    if isinstance(device, Execution) and device.device == "cpu":
        return METHOD_FUNCTIONS[method]
    from lora_kernels.composing.on_device import on_device
    from lora_kernels.devices.accelerator import Accelerator

    return on_device(method, Accelerator(execution=device) if isinstance(device, Execution) else device)


def _check_weights(weights: Sequence[float]) -> None:
    if not weights:
        raise RegistryError("invalid-request", "Nothing to compose; give at least one adapter.")
    for weight in weights:
        if not math.isfinite(weight) or abs(weight) > float(np.finfo(np.float32).max):
            raise RegistryError("invalid-request", f"The weight {weight} is not a finite number.")


def _ignored(index: int, reader: AdapterReader) -> list[str]:
    """Tensors that are not factors and change nothing, as `index:name`. Raises RegistryError `unsupported` for
    others."""
    for extra in reader.extras:
        if extra.kind != "copy":
            what = "replaces whole modules (modules_to_save)" if extra.kind == "saved" else "trains biases"
            raise RegistryError(
                "unsupported",
                f"Adapter {index} {what}: {extra.factor.name} is not an update and cannot be weighted.",
                hint="Merge it into the base separately, or train it without that.",
                adapter=index,
                tensor=extra.factor.name,
            )
    return [f"{index}:{extra.factor.name}" for extra in reader.extras]


def _inputs(readers: Sequence[AdapterReader]) -> dict[str, tuple[int, ...]]:
    """Indices of the adapters that have each module, by sorted path. Raises RegistryError `rejected` if shapes
    differ."""
    known = [frozenset(reader.modules) for reader in readers]
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted({path for reader in readers for path in reader.modules}):
        indices = tuple(index for index, paths in enumerate(known) if path in paths)
        first = readers[indices[0]].shape(path)
        for index in indices[1:]:
            other = readers[index].shape(path)
            if not first.fits(other):
                raise RegistryError(
                    "rejected",
                    f"{path} is {first.kind} {first.outputs} x {first.inputs} in adapter {indices[0]} and "
                    f"{other.kind} {other.outputs} x {other.inputs} in adapter {index}; expected the same base.",
                    hint="Compose adapters of one base.",
                    module=path,
                )
        found[path] = indices
    return found


def _identity(readers: Sequence[AdapterReader]) -> AdapterIdentity:
    """The identity of the first adapter; fields that it lacks come from the next one that has them."""
    found = [AdapterIdentity.of(reader.config, parts=reader.parts) for reader in readers]
    if len({identity.parts for identity in found}) > 1:
        raise RegistryError(
            "unsupported",
            "Some of the adapters have parts for the components of a pipeline, and others are of one component.",
            hint="Compose adapters of one kind, or merge all of them into the pipeline.",
        )
    return replace(
        found[0],
        base_model=next((identity.base_model for identity in found if identity.base_model), None),
        task_type=next((identity.task_type for identity in found if identity.task_type), None),
    )


def _in_order(compose: Callable[[str], _T], paths: Sequence[str], threads: int | None) -> Generator[_T, None, None]:
    """Yield `compose(path)` for each path, in order. At most `2 * threads` calls run ahead, which bounds the memory."""
    count = threads or os.cpu_count() or 1
    with one_thread(), ThreadPoolExecutor(count) as pool:
        waiting: deque[Future[_T]] = deque()
        try:
            for path in paths:
                waiting.append(pool.submit(compose, path))
                if len(waiting) > 2 * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
