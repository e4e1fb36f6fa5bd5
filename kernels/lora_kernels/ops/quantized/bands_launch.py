"""Launches of `bands_kernel`: the layouts that it takes, its arguments, its variants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton.language as tl

from lora_kernels.ops import aot
from lora_kernels.ops.configs import BAND_PROGRAMS, BANDS, BANDS_OF_MANY, BANDS_TO_NF4, LaunchConfig
from lora_kernels.ops.launch import ELEMENTS, on, options
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.quantized import FourBit, Int8Rows, Quantized
from lora_kernels.ops.quantized.bands import bands_kernel
from lora_kernels.ops.quantized.fragments import BAND, STEP, arrange, as_factor, as_stored
from lora_kernels.ops.quantized.kernel import DENSE, constants, parts, scheme, types
from lora_kernels.ops.quantized.lanes import encoding
from lora_kernels.ops.tables import ALIGNED_BYTES, ALIGNED_ELEMENTS

# Columns and strides, and groups of 32 elements, are numbered with 32 bits in the kernel.
_MOST_COLUMNS: Final = 2**31 - 1
_MOST_ELEMENTS: Final = 2**35


def fits(weight: torch.Tensor | Quantized, out: torch.Tensor | FourBit) -> bool:
    """Whether `run` takes a weight and an output: rows of whole steps of 64 columns, aligned; blocks of 64 elements or
    more, of an NF4 output just 64; a dense weight or output in bf16 or fp16."""
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
    return (
        tensor.dtype != torch.float32
        and tensor.data_ptr() % ALIGNED_BYTES == 0
        and tensor.stride(1) == 1
        and tensor.stride(0) % ALIGNED_ELEMENTS == 0
        and tensor.stride(0) <= _MOST_COLUMNS
    )


def run(
    weight: torch.Tensor | Quantized,
    adapters: Sequence[LowRank] | None,
    out: torch.Tensor | FourBit,
    absmax: torch.Tensor | None = None,
) -> None:
    """Decode, merge and round or encode what `fits`. adapters: None to add nothing. absmax: float32, of an NF4
    output."""
    (rows, columns), device = weight.shape, weight.device
    bands, steps = -(-rows // BAND.value), columns // STEP.value
    each = min(max(bands * steps // BAND_PROGRAMS, 4), BANDS.columns // STEP.value)
    factors = arrange(adapters, (rows, columns), device)
    encode = absmax is not None
    element = weight.dtype if isinstance(weight, torch.Tensor) else torch.float32
    given = parts(weight)
    given.pop("packed")
    with on(device):
        bands_kernel[(bands, -(-steps // each))](
            **_words(weight, "w"), **given, **_words(out, "out"),
            new_absmax=absmax if encode else factors.scales, encoding=encoding(device),
            factors_b=as_factor(factors.b), factors_a=as_factor(factors.a), scales=factors.scales,
            rows=rows, steps=steps, steps_each=each, adapters=factors.adapters, slices=factors.slices,
            **constants(weight), **_mode(element, factors.b.dtype, factors.adapters, factors.slices, encode=encode),
            **options(_config(factors.adapters, encode=encode)),
        )  # fmt: skip


def _words(matrix: torch.Tensor | Quantized, name: str) -> dict[str, Any]:
    """The argument of a weight or output as the kernel takes it, and the stride of its rows in eights."""
    if isinstance(matrix, FourBit):
        return {name: matrix.packed.view(torch.uint32), f"{name}_octets": 0}
    codes = matrix.codes.view(torch.uint32) if isinstance(matrix, Int8Rows) else as_stored(matrix)
    stride = matrix.codes.stride(0) if isinstance(matrix, Int8Rows) else matrix.stride(0)
    return {name: codes, f"{name}_octets": stride // ALIGNED_ELEMENTS}


def _mode(element: torch.dtype, factor: torch.dtype, adapters: int, slices: int, *, encode: bool) -> dict[str, Any]:
    return {
        "ELEMENT": ELEMENTS[element],
        "FACTOR": ELEMENTS[factor],
        "ENCODE": encode,
        "ADD": adapters > 0,
        "MANY": adapters > 1,
        "LONG": slices > 1,
    }


def _config(adapters: int, *, encode: bool) -> LaunchConfig:
    if adapters > 1:
        return BANDS_OF_MANY
    return BANDS_TO_NF4 if encode else BANDS


def variant(
    name: str,
    which: tl.constexpr,
    element: torch.dtype,
    *,
    out: torch.dtype | None,
    factor: torch.dtype = torch.bfloat16,
    adapters: int = 1,
    slices: int = 1,
    nested: int = 0,
) -> aot.Variant:
    """A variant to compile. element: of a dense W. out: None for NF4. slices: of the rank, of 16 each."""
    kinds = {torch.bfloat16: "*u16", torch.float16: "*fp16"}
    numbers = ("rows", "steps", "w_octets", "out_octets", "steps_each", "adapters", "slices")
    parted = types(nested=bool(nested))
    parted.pop("packed")
    return aot.Variant(
        name=name,
        kernel=bands_kernel,
        types={"w": kinds[element] if which is DENSE else "*u32", "out": "*u32" if out is None else kinds[out]}
        | parted
        | dict.fromkeys(("factors_b", "factors_a"), f"*{ELEMENTS[factor]}")
        | dict.fromkeys(("new_absmax", "encoding", "scales"), "*fp32")
        | dict.fromkeys(numbers, "i32"),
        constants=scheme(which, nested=nested) | _mode(element, factor, adapters, slices, encode=out is None),
        config=_config(adapters, encode=out is None),
        steps=BANDS.columns // STEP.value,
        elements=BAND.value * STEP.value,
    )


def named(adapters: int, slices: int) -> str:
    """What the name of a variant says of more than one adapter of rank 16."""
    return f"{f'{adapters} adapters, ' if adapters > 1 else ''}{'higher ranks, ' if slices > 1 else ''}"
