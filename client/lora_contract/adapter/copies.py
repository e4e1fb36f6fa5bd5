"""Copies in an adapter: of the base's tensors, which loaders put over the base's own, and of saved modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lora_contract import values
from lora_contract.adapter.files import ReadFile
from lora_contract.adapter.placed import Structure
from lora_contract.adapter.report import WEIGHTS, CheckReport
from lora_contract.base import BaseTensor
from lora_contract.tensors import DTYPE_BYTES, TensorEntry

ReadBase = Callable[[BaseTensor, int, int], bytes]
"""read_base(tensor, offset in the tensor, length) -> exactly that many bytes of it."""

CHUNK: Final = 1 << 18


def check_copies(structure: Structure, read: ReadFile, read_base: ReadBase | None, report: CheckReport) -> None:
    """Compare every copy with what it copies. Faults are added to the report."""
    for tensor, parameter in structure.copies:
        _check_copy(tensor, parameter, read, read_base, report)
    for tensor, parameter in structure.originals:
        _check_original(tensor, parameter, read, read_base, report)
    for tensor, twin in structure.twins:
        _check_twin(tensor, twin, read, report)


def _check_copy(
    tensor: TensorEntry, parameter: BaseTensor, read: ReadFile, read_base: ReadBase | None, report: CheckReport
) -> None:
    """Check a tensor that PEFT loads over the base's: it must have the base's own values."""
    why = _incomparable(tensor, parameter, read_base)
    if why is None and read_base is not None and _first_difference(tensor, parameter, read, read_base) is not None:
        why = "differs from it"
    if why is not None:
        report.add(
            "overwrites-base",
            f"The tensor {tensor.name} would be loaded over the base's own {parameter.name}, which is allowed only if "
            f"both are bitwise equal; it {why}.",
            where=tensor.name,
            found=why,
            expected=f"the bytes of {parameter.name}",
            hint="Save with save_embedding_layers=False; a module trained in full belongs in modules_to_save.",
        )


def _check_original(
    tensor: TensorEntry, parameter: BaseTensor, read: ReadFile, read_base: ReadBase | None, report: CheckReport
) -> None:
    """Check the base's own module beside a saved one. It has no effect with the adapter, but PEFT loads it over the
    base's for all. Only the last rows may differ: those of new tokens, whose first values are random."""
    why = _incomparable(tensor, parameter, read_base)
    rows = tensor.shape[0] if tensor.shape else 1
    place = None
    if why is None and read_base is not None:
        place = _first_difference(tensor, parameter, read, read_base)
        if place is None:
            return
        same = place * rows // tensor.elements
        why = f"differs from it from row {same} on"
        place = same
    alike = place is not None and 2 * place >= rows
    report.add(
        "replaces-rows" if alike else "overwrites-base",
        f"PEFT loads {tensor.name} over the base's own {parameter.name}; it {why}.",
        severity="warning" if alike else "error",
        where=tensor.name,
        found=why,
        expected=f"the bytes of {parameter.name}",
        hint="If these are the rows of new tokens: serve the adapter from a process of its own, or merge it."
        if alike
        else "Save with save_embedding_layers=False: the trained module is saved without it.",
    )


def _check_twin(tensor: TensorEntry, twin: TensorEntry, read: ReadFile, report: CheckReport) -> None:
    """Check a second copy of a saved tensor: which of two different ones was trained cannot be told."""
    same = (tensor.dtype, tensor.shape) == (twin.dtype, twin.shape) and all(
        read(WEIGHTS, tensor.file_start + offset, size) == read(WEIGHTS, twin.file_start + offset, size)
        for offset in range(0, tensor.nbytes, CHUNK)
        for size in (min(CHUNK, tensor.nbytes - offset),)
    )
    if not same:
        report.add(
            "copies-differ",
            f"The tensors {tensor.name} and {twin.name} are two copies of one saved module and differ; PEFT loads the "
            "second.",
            where=tensor.name,
            expected=f"the bytes of {twin.name}",
            hint="Save the adapter again with PEFT's save_pretrained.",
        )


def _incomparable(tensor: TensorEntry, parameter: BaseTensor, read_base: ReadBase | None) -> str | None:
    if tensor.shape != parameter.shape:
        return f"has the shape {list(tensor.shape)}, the base's has {list(parameter.shape)}"
    if values.widen(b"", parameter.dtype, tensor.dtype) is None:
        return f"has the dtype {tensor.dtype}, which cannot hold the base's {parameter.dtype} exactly"
    if read_base is None:
        return "cannot be compared, since the base is registered without its weights"
    return None


def _first_difference(tensor: TensorEntry, parameter: BaseTensor, read: ReadFile, read_base: ReadBase) -> int | None:
    """The first element in which a tensor differs from the base's; None if they are equal."""
    item, base_item = DTYPE_BYTES[tensor.dtype], DTYPE_BYTES[parameter.dtype]
    for first in range(0, tensor.elements, CHUNK // item):
        count = min(CHUNK // item, tensor.elements - first)
        own = read(WEIGHTS, tensor.file_start + first * item, count * item)
        theirs = values.widen(read_base(parameter, first * base_item, count * base_item), parameter.dtype, tensor.dtype)
        if theirs is None or own != theirs:
            pairs = zip(own, theirs or b"", strict=False)
            return first + next((place for place, (one, two) in enumerate(pairs) if one != two), 0) // item
    return None
