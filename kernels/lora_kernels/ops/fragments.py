"""Products of factors whose sums arrive in the layout in which W is read: no conversion, no shared memory.

A thread reads 16 bytes of W: 8 neighbouring columns of 16 bits, or 4 of 32. The matrix units leave a thread columns 2q
and 2q + 1 of each 8 of their result. With the columns of A permuted within a group of 32 (16), these are neighbours:
column bits n4 n3 n2 n1 n0 of the product hold column n2 n1 n4 n3 n0 of W; of 16, n3 n2 n1 n0 hold n2 n1 n3 n0. Both
factors are stored once, by `arrange`, in the order in which the 32 lanes of a warp take them, so that
a lane reads its share of 16 x 16 elements in one access.

A kernel of one warp then walks along a block of rows, one group of columns after another:

    b_b = load_b(p_b, ROWS, RANK, FACTOR)                      # once: p_b = address + arange(0, ROWS * RANK)
    b_a = load_a(p_a, RANK, WIDTH, FACTOR)                     # of a group: p_a = address + arange(0, RANK * WIDTH)
    b_product = in_columns(multiply(b_b, b_a), ROWS, WIDTH)    # float32 (ROWS, WIDTH), in the layout of W

Tiles are matrices on purpose: Triton 3.6 and 3.7 order the dimensions of larger ones differently, and with one of them
a conversion comes back. `tests/kernels/ops/test_aot.py` counts exchanges of both.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from lora_kernels.ops.rounding import COMPILED, widen

# Rank that one instruction of the matrix units sums, and rows that it takes.
UNIT: Final = 16
# Columns of a group, by bytes of an element of W.
WIDTHS: Final = {2: 32, 4: 16}


@triton.jit
def load_a(p_a: tl.tensor, RANK: tl.constexpr, WIDTH: tl.constexpr, FACTOR: tl.constexpr) -> tl.tensor:
    """A of one group, (RANK, WIDTH), its columns permuted. p_a: pointers (RANK * WIDTH,), of `factor_pointer`."""
    b_a = tl.reshape(_load_factor(p_a, FACTOR), (RANK // 16, WIDTH // 16, 8, 4, 2, 2, 2))
    return tl.reshape(tl.permute(b_a, (0, 5, 3, 6, 1, 4, 2)), (RANK, WIDTH))


@triton.jit
def load_b(p_b: tl.tensor, ROWS: tl.constexpr, RANK: tl.constexpr, FACTOR: tl.constexpr) -> tl.tensor:
    """B of one block, (ROWS, RANK). p_b: pointers (ROWS * RANK,), of `factor_pointer`."""
    b_b = tl.reshape(_load_factor(p_b, FACTOR), (ROWS // 16, RANK // 16, 8, 4, 2, 2, 2))
    return tl.reshape(tl.permute(b_b, (0, 5, 2, 1, 4, 3, 6)), (ROWS, RANK))


@triton.jit
def factor_pointer(address: tl.tensor, FACTOR: tl.constexpr) -> tl.tensor:
    """The address of arranged factors as a pointer: to their bits in the interpreter, which misreads bf16."""
    if FACTOR == tl.bfloat16 and not COMPILED:
        return address.to(tl.pointer_type(tl.uint16))
    else:
        return tl.multiple_of(address.to(tl.pointer_type(FACTOR)), 16)


@triton.jit
def _load_factor(pointers: tl.tensor, FACTOR: tl.constexpr) -> tl.tensor:
    if COMPILED:
        return tl.load(pointers)
    else:
        return widen(tl.load(pointers), FACTOR)


@triton.jit
def multiply(b_b: tl.tensor, b_a: tl.tensor, b_sum: tl.tensor) -> tl.tensor:
    """b_sum + B @ A in float32: on the matrix units, or of widened factors in the interpreter."""
    if COMPILED:
        return tl.dot(b_b, b_a, b_sum)
    else:
        return tl.dot(b_b, b_a, b_sum, input_precision="ieee")


@triton.jit
def in_columns(b_product: tl.tensor, ROWS: tl.constexpr, WIDTH: tl.constexpr) -> tl.tensor:
    """The columns of a product with the result of `load_a` in the order of W."""
    parts = tl.reshape(b_product, (ROWS, WIDTH // 16, 2, 4, 2))
    return tl.reshape(tl.permute(parts, (0, 3, 1, 2, 4)), (ROWS, WIDTH))
