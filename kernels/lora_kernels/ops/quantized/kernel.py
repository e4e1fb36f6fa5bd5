"""Tiles of quantized weights of any layout in kernels, as float32; aligned ones are read by `bands`.

A launch has one scheme. Parts that a scheme does not have are passed as empty tensors, which are not read. The offsets
of 4-bit codes follow from the shape, so the job of such a weight has no address (`like`).
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl

from lora_kernels.ops.quantized import FourBit, Int8Rows, Quantized
from lora_kernels.ops.rounding import load_typed
from lora_kernels.ops.tiles import W_COLUMN, W_ROW, W, offsets
from lora_kernels.quantized.int8 import UNIT

DENSE: Final = tl.constexpr(0)
FOUR_BIT: Final = tl.constexpr(1)
INT8: Final = tl.constexpr(2)
INT8_UNIT: Final = tl.constexpr(float(UNIT))
# In addition to `launch.TABLE_TYPES`; absmax is uint8 with double quantization.
PART_TYPES: Final = {
    "packed": "*u8", "absmax": "*fp32", "values": "*fp32",
    "nested_absmax": "*fp32", "nested_values": "*fp32", "offset": "*fp32",
}  # fmt: skip


@triton.jit
def load_absmax(
    blocks: tl.tensor,
    mask: tl.tensor,
    absmax: tl.tensor,
    nested_absmax: tl.tensor,
    nested_values: tl.tensor,
    offset: tl.tensor,
    NESTED: tl.constexpr,
) -> tl.tensor:
    """The absmax of blocks by index, unsigned; 0 if masked. NESTED: elements of a nested block, 0 for none."""
    b_absmax = tl.load(absmax + blocks.to(tl.int64), mask, other=0)
    if NESTED:
        b_scale = tl.load(nested_absmax + (blocks // NESTED).to(tl.int64), mask, other=0.0)
        b_value = tl.load(nested_values + b_absmax.to(tl.int64)) * b_scale + tl.load(offset)
        return tl.where(mask, b_value, 0.0)
    else:
        return b_absmax


@triton.jit
def load_weight(
    job: tl.tensor,
    packed: tl.tensor,
    absmax: tl.tensor,
    values: tl.tensor,
    nested_absmax: tl.tensor,
    nested_values: tl.tensor,
    offset: tl.tensor,
    o_rows: tl.tensor,
    o_columns: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    SCHEME: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    NESTED: tl.constexpr,
) -> tl.tensor:
    """The tile of W, float32, 0 outside the matrix. packed ... offset: the parts of a `FourBit`; absmax: the scb of an
    `Int8Rows`."""
    m_rows = o_rows < rows
    m_tile = m_rows[:, None] & (o_columns < columns)[None, :]
    if SCHEME == INT8:
        o_codes = offsets(job, o_rows, o_columns, W_ROW, W_COLUMN, False)
        b_codes = load_typed(tl.load(job + W), o_codes, m_tile, tl.int8, False)
        b_scb = tl.load(absmax + o_rows, m_rows, other=0.0)
        return (b_codes.to(tl.float32) * b_scb[:, None]) * INT8_UNIT
    else:
        elements = (o_rows[:, None] * columns + o_columns[None, :]).to(tl.uint64)
        b_bytes = tl.load(packed + (elements // 2).to(tl.int64), m_tile, other=0)
        b_codes = tl.where(elements % 2 == 0, b_bytes >> 4, b_bytes & 15)
        b_scale = load_absmax(elements // BLOCKSIZE, m_tile, absmax, nested_absmax, nested_values, offset, NESTED)
        return tl.load(values + b_codes.to(tl.int64)) * b_scale


def like(weight: Quantized) -> torch.Tensor:
    """The tensor that stands for W in `tables.build`: for 4-bit codes only a shape."""
    return weight.codes if isinstance(weight, Int8Rows) else torch.empty(weight.shape, device="meta")


def parts(weight: torch.Tensor | Quantized) -> dict[str, torch.Tensor]:
    """The arguments of `load_weight`; empty tensors, which are not read, for missing parts."""
    none = torch.empty(0, device=weight.device)
    given = dict.fromkeys(PART_TYPES, none) | {"packed": none.to(torch.uint8)}
    if isinstance(weight, Int8Rows):
        return given | {"absmax": weight.scb}
    if isinstance(weight, FourBit):
        given |= {"packed": weight.packed, "absmax": weight.absmax, "values": weight.values}
        if weight.nested is not None:
            nested = weight.nested
            given |= {"nested_absmax": nested.absmax, "nested_values": nested.values, "offset": nested.offset}
    return given


def constants(weight: torch.Tensor | Quantized) -> dict[str, Any]:
    """The compile-time arguments of `load_weight` for a weight."""
    if isinstance(weight, FourBit):
        nested = weight.nested.blocksize if weight.nested is not None else 0
        return scheme(FOUR_BIT, blocksize=weight.blocksize, nested=nested)
    return scheme(INT8 if isinstance(weight, Int8Rows) else DENSE)


def scheme(which: tl.constexpr, *, blocksize: int = 64, nested: int = 0) -> dict[str, Any]:
    """The compile-time arguments of `load_weight` for a scheme. nested: elements of a nested block, 0 for none."""
    return {"SCHEME": which.value, "BLOCKSIZE": blocksize, "NESTED": nested}


def types(*, nested: bool) -> dict[str, str]:
    """The types of the parts, in Triton's notation."""
    return PART_TYPES | ({"absmax": "*u8"} if nested else {})
