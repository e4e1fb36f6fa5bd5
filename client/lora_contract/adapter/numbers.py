"""Checks of values: finite, also as products; a nonzero update; copies of base tensors equal to the base.

Every tensor is read once, in chunks.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from lora_contract import values
from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.copies import CHUNK, ReadBase, check_copies
from lora_contract.adapter.files import ReadFile
from lora_contract.adapter.groups import AdaptedModule
from lora_contract.adapter.placed import Structure
from lora_contract.adapter.report import CONFIG, WEIGHTS, CheckReport
from lora_contract.adapter.scaling import Scales
from lora_contract.adapter.slots import AdapterType
from lora_contract.adapter.types import TYPES
from lora_contract.tensors import DTYPE_BYTES, Header, TensorEntry

# Norm layers square activations: beyond the square root of float32's largest number they overflow.
_LIMIT: Final = 1.8e19
_LARGE: Final = 1e5


class Stats(msgspec.Struct):
    """Statistics of one tensor. zero, one: all values are. bound: of the largest magnitude, a power of two."""

    zero: bool = True
    one: bool = True
    bound: float = 0.0


def check_values(
    config: AdapterConfig,
    header: Header,
    structure: Structure,
    scale: Scales,
    read: ReadFile,
    read_base: ReadBase | None,
    report: CheckReport,
) -> None:
    """Read every float tensor once and add faults to the report."""
    stats = {tensor.name: _scan(tensor, read, report) for tensor in header.tensors}
    kind = TYPES[config.peft_type]
    _check_products(kind, structure, scale, stats, report)
    for group in structure.groups.values():
        _check_indices(group, kind, read, report)
    _check_effect(kind, structure, scale, stats, report)
    check_copies(structure, read, read_base, report)


def _scan(tensor: TensorEntry, read: ReadFile, report: CheckReport) -> Stats:
    stats = Stats()
    size = DTYPE_BYTES[tensor.dtype]
    for offset in range(0, tensor.nbytes, CHUNK):
        chunk = read(WEIGHTS, tensor.file_start + offset, min(CHUNK, tensor.nbytes - offset))
        index = values.first_nonfinite(chunk, tensor.dtype)
        if index is not None and stats.bound != float("inf"):
            stats.bound = float("inf")
            place = offset // size + index
            report.add(
                "nonfinite-value",
                f"The tensor {tensor.name} has NaN or infinity at element {place}; all values must be finite.",
                where=tensor.name,
                found=f"NaN or infinity at element {place}",
                expected="finite values",
                hint="Training diverged or the file is damaged: push an earlier checkpoint.",
            )
        stats.zero = stats.zero and values.is_zero(chunk, tensor.dtype)
        stats.one = stats.one and values.is_one(chunk, tensor.dtype)
        stats.bound = max(stats.bound, values.magnitude_bound(chunk, tensor.dtype))
    return stats


def _check_products(
    kind: AdapterType, structure: Structure, scale: Scales, stats: dict[str, Stats], report: CheckReport
) -> None:
    if not kind.factors:
        return
    for group in structure.groups.values():
        factors = [stats[tensor.name].bound for suffix, tensor in group.tensors.items() if suffix in kind.factors]
        if any(bound == float("inf") for bound in factors):
            continue  # already reported as a value that is not finite, or as a dtype
        module = scale(group.path)
        product = abs(module.scale) * module.r ** (len(factors) // 2)
        for bound in factors:
            product *= bound
        if _LARGE < product <= _LIMIT:
            report.add(
                "large-update",
                f"The update of {group.path} may reach {product:.3g}; weights rarely exceed 1.",
                severity="warning",
                where=group.path,
                found=f"up to {product:.3g}",
                hint="Validate the adapter before use: the training may have diverged.",
            )
        if product > _LIMIT:
            report.add(
                "product-overflow",
                f"The update of {group.path} can overflow float32: scale {module.scale:.3g} times factors up to "
                f"{' and '.join(f'{bound:.3g}' for bound in factors)} at rank {module.r}.",
                where=group.path,
                found=f"up to {product:.3g}",
                expected=f"at most {_LIMIT:.3g}",
                hint="Check alpha and the training: the values are far outside the useful range.",
            )


def _check_effect(
    kind: AdapterType, structure: Structure, scale: Scales, stats: dict[str, Stats], report: CheckReport
) -> None:
    if structure.saved or structure.biases or structure.tokens or not structure.groups:
        return
    if all(scale(group.path).scale == 0.0 for group in structure.groups.values()):
        report.add(
            "no-effect",
            f"{CONFIG} gives every module the scale 0 (alpha is 0): the adapter changes nothing.",
            file=CONFIG,
            where="lora_alpha",
            found="0",
            expected="another alpha",
            hint="Set lora_alpha to the value used in training.",
        )
        return
    if all(_inert(group, kind, stats) for group in structure.groups.values()):
        suffix = next((name for name in next(iter(structure.groups.values())).tensors), "")
        report.add(
            "no-effect",
            "The adapter changes nothing: in every module a factor of the update is zero (or every scaling is one).",
            where=suffix,
            found="a zero update in every module",
            expected="at least one module with a nonzero update",
            hint="The adapter was saved untrained, or its weights were lost when saving: push a trained one.",
        )


def _check_indices(group: AdaptedModule, kind: AdapterType, read: ReadFile, report: CheckReport) -> None:
    """Check that indices into the module's weight are in range: on a GPU an index out of range kills the process."""
    module = group.module
    if module is None or module.out is None or module.in_ is None:
        return
    sizes = {"out": module.out, "in": module.in_, "out*in": module.out * module.in_}
    for suffix, names in kind.limits.items():
        limits = [sizes[name] for name in names]
        tensor = group.tensors.get(suffix)
        if tensor is None or tensor.dtype not in ("I32", "I64"):
            continue
        size = DTYPE_BYTES[tensor.dtype]
        row = tensor.nbytes // len(limits) // size * size
        for place, limit in enumerate(limits):
            for offset in range(place * row, (place + 1) * row, CHUNK):
                chunk = read(WEIGHTS, tensor.file_start + offset, min(CHUNK, (place + 1) * row - offset))
                found = struct.unpack(f"<{len(chunk) // size}{'i' if size == 4 else 'q'}", chunk)
                if min(found) < 0 or max(found) >= limit:
                    report.add(
                        "index-out-of-range",
                        f"The tensor {tensor.name} has the index {max(found, key=abs)}, expected 0 to {limit - 1}.",
                        where=tensor.name,
                        found=str(max(found, key=abs)),
                        expected=f"0 to {limit - 1}",
                    )
                    return


def _inert(group: AdaptedModule, kind: AdapterType, stats: dict[str, Stats]) -> bool:
    held = group.tensors
    if any(suffix.startswith("lora_magnitude") for suffix in held):
        return False  # DoRA: the magnitudes alone may change the weight
    bias = held.get("lora_B.bias")
    if bias is not None and not stats[bias.name].zero:
        return False
    if any(suffix in held and stats[held[suffix].name].zero for suffix in kind.inert):
        return True
    return bool(kind.identity) and all(
        suffix in held and (stats[held[suffix].name].one if value else stats[held[suffix].name].zero)
        for suffix, value in kind.identity
    )
