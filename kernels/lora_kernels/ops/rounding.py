"""Conversion of elements to float32 and back in kernels, each with at most one rounding (to nearest, ties to even).

bf16 is loaded and stored as integers. Compiled kernels round with the processor's own conversion, which gives NaN and
nothing else 0x7FFF; the minimum with 0x7FC0, as signed integers, makes it the NaN of `lora_kernels.numeric.dtypes` and
changes no other number. Triton's interpreter truncates in casts to bf16, gets subnormal numbers wrong in casts from it,
and computes garbage on bf16 operands, so it runs integer operations instead. `COMPILED` chooses.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lora_kernels.ops.dispatch import interpreted

# False in a process whose kernels are interpreted, which stays so.
COMPILED = tl.constexpr(not interpreted())
# NaN as bf16, as a signed integer above infinity.
_NAN = tl.constexpr(0x7FC0)
# Two elements of a register, each in the upper half of its own.
_WIDEN_PAIR = tl.constexpr("shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;")


@triton.jit
def load(
    pointer: tl.tensor, offsets: tl.tensor, mask: tl.tensor, ELEMENT: tl.constexpr, ALIGNED: tl.constexpr
) -> tl.tensor:
    """Load elements for `widen`, bf16 as uint16; 0 if masked.

    pointer: address, int64 scalar. offsets: int64, in elements. ALIGNED: the address is a multiple of 16 bytes.
    """
    if ELEMENT == tl.bfloat16:
        return load_typed(pointer, offsets, mask, tl.uint16, ALIGNED)
    else:
        return load_typed(pointer, offsets, mask, ELEMENT, ALIGNED)


@triton.jit
def load_typed(
    pointer: tl.tensor, offsets: tl.tensor, mask: tl.tensor, ELEMENT: tl.constexpr, ALIGNED: tl.constexpr
) -> tl.tensor:
    """Load elements as ELEMENT; bf16 only for `tl.dot` on a GPU. Arguments as in `load`."""
    p_elements = pointer.to(tl.pointer_type(ELEMENT))
    if ALIGNED:
        p_elements = tl.multiple_of(p_elements, 16)
    return tl.load(p_elements + offsets, mask, other=0)


@triton.jit
def element_pointer(address: tl.tensor, ELEMENT: tl.constexpr) -> tl.tensor:
    """An address, a multiple of 16 bytes, as a pointer for `load_elements` and `store_elements`."""
    if ELEMENT == tl.bfloat16:
        return tl.multiple_of(address.to(tl.pointer_type(tl.uint16)), 16)
    else:
        return tl.multiple_of(address.to(tl.pointer_type(ELEMENT)), 16)


@triton.jit
def load_elements(pointers: tl.tensor, mask: tl.tensor, WHOLE: tl.constexpr) -> tl.tensor:
    """Load elements for `widen` that are not read again soon; 0 if masked. WHOLE: nothing is masked, so that no mask is
    computed."""
    if WHOLE:
        return tl.load(pointers, eviction_policy="evict_first")
    else:
        return tl.load(pointers, mask, other=0, eviction_policy="evict_first")


@triton.jit
def store_elements(
    pointers: tl.tensor, values: tl.tensor, mask: tl.tensor, WHOLE: tl.constexpr, ELEMENT: tl.constexpr
) -> None:
    """Store float32 `values` rounded once to ELEMENT. WHOLE: see `load_elements`."""
    if WHOLE:
        tl.store(pointers, rounded(values, ELEMENT))
    else:
        tl.store(pointers, rounded(values, ELEMENT), mask)


@triton.jit
def widen(stored: tl.tensor, ELEMENT: tl.constexpr) -> tl.tensor:
    """Convert the result of `load` to float32, exactly."""
    if ELEMENT == tl.bfloat16 and COMPILED:
        # One instruction an element; the compiler makes two of the shift for each second one.
        return tl.inline_asm_elementwise(_WIDEN_PAIR, "=f,=f,r", [stored], dtype=tl.float32, is_pure=True, pack=2)
    elif ELEMENT == tl.bfloat16:
        return (stored.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return stored.to(tl.float32)


@triton.jit
def bf16_bits(values: tl.tensor) -> tl.tensor:
    """The uint16 bits of the bf16 numbers nearest to float32 `values`."""
    if COMPILED:
        b_converted = values.to(tl.bfloat16).to(tl.int16, bitcast=True)
        return tl.minimum(b_converted, tl.full([], _NAN, tl.int16)).to(tl.uint16, bitcast=True)
    else:
        return _bf16_bits_in_integers(values)


@triton.jit
def _bf16_bits_in_integers(values: tl.tensor) -> tl.tensor:
    bits = values.to(tl.uint32, bitcast=True)
    # Adding 0x7fff, and one more if the kept half is odd, carries into the kept half exactly when nearest-even rounds
    # up.
    upper = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return tl.where(values == values, upper, _NAN).to(tl.uint16)


@triton.jit
def rounded(values: tl.tensor, ELEMENT: tl.constexpr) -> tl.tensor:
    """Round float32 `values` once to ELEMENT, as they are stored: bf16 as its bits."""
    if ELEMENT == tl.bfloat16:
        return bf16_bits(values)
    else:
        return values.to(ELEMENT)


@triton.jit
def round_to(values: tl.tensor, ELEMENT: tl.constexpr) -> tl.tensor:
    """Round float32 `values` once to ELEMENT, as float32."""
    if ELEMENT == tl.bfloat16:
        return widen(bf16_bits(values), ELEMENT)
    else:
        return values.to(ELEMENT).to(tl.float32)


@triton.jit
def store_rounded(
    pointer: tl.tensor,
    offsets: tl.tensor,
    values: tl.tensor,
    mask: tl.tensor,
    ELEMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> None:
    """Store float32 `values` rounded once to ELEMENT. Arguments as in `load`."""
    if ELEMENT == tl.bfloat16:
        p_bits = pointer.to(tl.pointer_type(tl.uint16))
        if ALIGNED:
            p_bits = tl.multiple_of(p_bits, 16)
        tl.store(p_bits + offsets, bf16_bits(values), mask)
    else:
        p_elements = pointer.to(tl.pointer_type(ELEMENT))
        if ALIGNED:
            p_elements = tl.multiple_of(p_elements, 16)
        tl.store(p_elements + offsets, values.to(ELEMENT), mask)
