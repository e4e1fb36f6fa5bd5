"""Launches of `bands_kernel`: the layouts that it takes, its arguments, its variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton.language as tl

from lora_kernels.ops import aot, tables
from lora_kernels.ops.arrange import Arrangement, arrange
from lora_kernels.ops.configs import BAND_PROGRAMS, BANDS
from lora_kernels.ops.dispatch import interpreted
from lora_kernels.ops.fragments import UNIT
from lora_kernels.ops.launch import ELEMENTS, on, options, upload
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.merge_low_rank.forms import form_of_factors, planes_of
from lora_kernels.ops.merge_low_rank.partials import SUMS
from lora_kernels.ops.quantized import FourBit, Int8Rows, Quantized
from lora_kernels.ops.quantized.bands import BAND, GROUP, STEP, bands_kernel
from lora_kernels.ops.quantized.kernel import FOUR_BIT, constants, parts, scheme, types
from lora_kernels.ops.quantized.lanes import encoding
from lora_kernels.ops.tables import ALIGNED_BYTES, ALIGNED_ELEMENTS

# Columns and groups of 32 elements are numbered with 32 bits in the kernel, and a launch has at most 65,535 segments.
_MOST_COLUMNS: Final = 2**27
_MOST_ELEMENTS: Final = 2**35


def fits(weight: torch.Tensor | Quantized, out: torch.Tensor | FourBit) -> bool:
    """Whether `run` takes a weight and an output: rows of whole steps of 64 columns, aligned; blocks of 64 elements or
    more, of an NF4 output just 64."""
    rows, columns = weight.shape
    small = 0 < rows * columns <= _MOST_ELEMENTS and columns <= _MOST_COLUMNS
    return small and columns % STEP.value == 0 and _read(weight) and _written(out)


def _read(weight: torch.Tensor | Quantized) -> bool:
    if isinstance(weight, FourBit):
        return weight.blocksize % STEP.value == 0 and weight.packed.data_ptr() % ALIGNED_BYTES == 0
    return _aligned(weight.codes) if isinstance(weight, Int8Rows) else _aligned(weight)


def _written(out: torch.Tensor | FourBit) -> bool:
    if isinstance(out, FourBit):
        return out.blocksize == STEP.value and out.packed.data_ptr() % ALIGNED_BYTES == 0
    return _aligned(out)


def _aligned(tensor: torch.Tensor) -> bool:
    return tables.is_aligned(tensor) and tensor.stride(0) <= _MOST_COLUMNS


def run(
    weight: torch.Tensor | Quantized,
    adapters: Sequence[LowRank] | None,
    out: torch.Tensor | FourBit,
    *,
    absmax: torch.Tensor | None = None,
    stats: bool = False,
) -> torch.Tensor:
    """Decode, merge and round or encode what `fits`. Returns partial statistics (programs, 4), for
    `partials.sums_without_count`.

    Args:
        adapters: None to add nothing.
        absmax: float32, of an NF4 output.
        stats: of a merge into an output that is not NF4; False to return no programs.
    """
    (rows, columns), device = weight.shape, weight.device
    bands, steps = -(-rows // BAND.value), columns // STEP.value
    each = min(max(bands * steps // BAND_PROGRAMS, 4), BANDS.columns // STEP.value)
    segments = -(-steps // each)
    present = [adapter for adapter in adapters or () if adapter.rank]
    factor, held, rank = form_of_factors(present) if present else (torch.bfloat16, 0, UNIT)
    form = Form(
        weight.dtype if isinstance(weight, torch.Tensor) else None, None if isinstance(out, FourBit) else out.dtype,
        factor, held, rank, add=adapters is not None, stats=stats,
    )  # fmt: skip
    factors_b, factors_a = _arranged(present, form) if present else (torch.empty(0, device=device).bfloat16(),) * 2
    scales = upload([adapter.scale for adapter in present], torch.float32, device)
    partials = torch.empty((bands * segments if stats else 0, SUMS), device=device)
    given = parts(weight)
    given.pop("packed")
    with on(device):
        bands_kernel[(bands, segments)](
            **_words(weight, "w"), **given, **_words(out, "out"),
            new_absmax=partials if absmax is None else absmax, encoding=encoding(device),
            factors_b=_as_factor(factors_b), factors_a=_as_factor(factors_a), scales=scales, partials=partials,
            rows=rows, steps=steps, steps_each=each, adapters=len(present), rank=rank,
            **constants(weight), **form.constants(), **options(BANDS),
        )  # fmt: skip
    return partials


def _words(matrix: torch.Tensor | Quantized, name: str) -> dict[str, Any]:
    """The argument of a weight or output as the kernel takes it, and the stride of its rows in eights."""
    if isinstance(matrix, FourBit):
        return {name: matrix.packed.view(torch.uint32), f"{name}_octets": 0}
    codes = matrix.codes.view(torch.uint32) if isinstance(matrix, Int8Rows) else as_stored(matrix)
    stride = matrix.codes.stride(0) if isinstance(matrix, Int8Rows) else matrix.stride(0)
    return {name: codes, f"{name}_octets": stride // ALIGNED_ELEMENTS}


@dataclass(frozen=True, slots=True)
class Form:
    """How the kernel is compiled, but for the scheme of W.

    Args:
        element: of a dense W; None for codes.
        out: None for NF4.
        factor, held, rank: of the adapters, see `form_of_factors`.
        add: False to add nothing.
        stats: as in `run`.
    """

    element: torch.dtype | None
    out: torch.dtype | None
    factor: torch.dtype = torch.bfloat16
    held: int = 1
    rank: int = 16
    add: bool = True
    stats: bool = False

    @property
    def slice_rank(self) -> int:
        """Rank that is multiplied at once. Factors that are read again for each step leave few registers."""
        return self.rank if self.held else UNIT

    @property
    def stored_factor(self) -> torch.dtype:
        return torch.bfloat16 if planes_of(self.factor) > 1 else self.factor

    def constants(self) -> dict[str, Any]:
        """The compile-time arguments."""
        return {
            "ELEMENT": ELEMENTS[self.element or torch.float32],
            "OUTPUT": ELEMENTS[self.out or torch.float32],
            "FACTOR": ELEMENTS[self.stored_factor],
            "PLANES": planes_of(self.factor),
            "ENCODE": self.out is None,
            "ADD": self.add,
            "HELD": self.held if self.add else 0,
            "RANK": self.slice_rank,
            "STATS": self.stats,
        }


def _arranged(adapters: Sequence[LowRank], form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """B and A in the order of the matrix units."""
    arrangement = Arrangement(
        form.rank, rows=BAND.value, width=GROUP.value, slice_rank=form.slice_rank, planes=planes_of(form.factor)
    )
    pairs = [(adapter.b, adapter.a) for adapter in adapters]
    (found,), _ = arrange([pairs], form.factor, arrangement, pairs[0][0].device)
    return found


def _as_factor(tensor: torch.Tensor) -> torch.Tensor:
    """Factors as they are, for the matrix units; for the interpreter, which misreads bf16, as bits."""
    return as_stored(tensor) if interpreted() else tensor


def as_stored(tensor: torch.Tensor) -> torch.Tensor:
    """A matrix of elements as kernels take it: bf16 as its bits."""
    return tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor


def variant(operation: str, which: tl.constexpr, nested: int, form: Form) -> aot.Variant:
    """A variant to compile. operation: the beginning of its name. nested: elements of a nested block, 0 for none."""
    kinds = {torch.bfloat16: "*u16", torch.float16: "*fp16", torch.float32: "*fp32", None: "*u32"}
    source = ELEMENTS[form.element] if form.element else "4-bit" if which is FOUR_BIT else "int8"
    more = [
        f"factors {ELEMENTS[form.factor]}, {form.held or 'any number'} x {form.rank}" if form.add else "",
        "stats" if form.stats else "",
        "aligned",
    ]
    target = ELEMENTS[form.out] if form.out else "blocks of 64"
    parted = types(nested=bool(nested))
    parted.pop("packed")
    return aot.Variant(
        name=f"{operation} {source}{', nested' if nested else ''} to {target}, {', '.join(filter(None, more))}",
        kernel=bands_kernel,
        types={"w": kinds[form.element], "out": kinds[form.out]}
        | parted
        | dict.fromkeys(("factors_b", "factors_a"), f"*{ELEMENTS[form.stored_factor]}")
        | dict.fromkeys(("new_absmax", "encoding", "scales", "partials"), "*fp32")
        | dict.fromkeys(("rows", "steps", "w_octets", "out_octets", "steps_each", "adapters", "rank"), "i32"),
        constants=scheme(which, nested=nested) | form.constants(),
        config=BANDS,
        steps=BANDS.columns // STEP.value,
        elements=BAND.value * STEP.value,
    )
