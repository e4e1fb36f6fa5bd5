"""dW on a step of a band: 16 rows and 64 columns, from factors in the order of the matrix units (`ops.fragments`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from lora_kernels.ops.dispatch import interpreted
from lora_kernels.ops.fragments import arrange_a, arrange_b, in_columns, load_a, load_b, multiply
from lora_kernels.ops.low_rank import LowRank

BAND: Final = tl.constexpr(16)
STEP: Final = tl.constexpr(64)
GROUP: Final = tl.constexpr(STEP.value // 2)
SLICE: Final = tl.constexpr(16)
SLICE_B: Final = tl.constexpr(BAND.value * SLICE.value)
SLICE_A: Final = tl.constexpr(GROUP.value * SLICE.value)
# The products of three planes, each a bf16 number, that make a float32 product but for 2^-34 of it; smallest first.
_PLANES: Final = ((1, 2), (2, 1), (0, 2), (2, 0), (1, 1), (0, 1), (1, 0), (0, 0))


@dataclass(frozen=True, slots=True)
class Fragments:
    """Arranged factors of all adapters of a matrix, bf16 or fp16, as `arrange_b` and `arrange_a` return them for bands
    and groups, and their scales, float32 (adapters,). slices: of the rank, of 16 each."""

    b: torch.Tensor
    a: torch.Tensor
    scales: torch.Tensor
    slices: int

    @property
    def adapters(self) -> int:
        return self.scales.shape[0]


def arrange(adapters: Sequence[LowRank] | None, shape: tuple[int, int], device: torch.device) -> Fragments:
    """The fragments of adapters of a matrix (o, i), i a multiple of 64; of [], those of a product that is 0.

    float32 factors, and those of several dtypes, become products of bf16 planes: exact but for 2^-34 of each product
    and, of elements under 2^-100, for 2^-133 of the other factor.
    """
    if adapters is None:
        none = torch.empty(0, device=device)
        return Fragments(none.half(), none.half(), none, 0)
    zero = LowRank(torch.zeros(shape[0], 1, device=device).half(), torch.zeros(1, shape[1], device=device).half())
    adapters = [one for one in adapters if one.rank] or [zero]
    dtypes = {factor.dtype for adapter in adapters for factor in (adapter.a, adapter.b)}
    split = len(dtypes) > 1 or torch.float32 in dtypes
    pairs = [_by_planes(one) if split else (one.b, one.a) for one in adapters]
    slices = -(-max(a.shape[0] for _, a in pairs) // SLICE.value)
    rank = slices * SLICE.value
    return Fragments(
        arrange_b([b for b, _ in pairs], rank=rank, rows=BAND.value, slice_rank=SLICE.value),
        arrange_a([a for _, a in pairs], rank=rank, width=GROUP.value),
        torch.tensor([one.scale for one in adapters], dtype=torch.float32).to(device, non_blocking=True),
        slices,
    )


def _by_planes(adapter: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    """B and A in bf16, of a larger rank, whose product is that of the float32 ones."""
    b, a = planes(adapter.b), planes(adapter.a)
    return torch.cat([b[i] for i, _ in _PLANES], dim=1), torch.cat([a[i] for _, i in _PLANES])


def planes(factor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Three bf16 tensors whose sum is the float32 one, the largest first."""
    rest, found = factor.float(), []
    for _ in range(3):
        found.append(rest.bfloat16())
        # What is not finite is in the first plane alone.
        rest = torch.where(found[0].isfinite(), rest - found[-1].float(), 0.0)
    return tuple(found)


def as_stored(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of elements: bf16 as its bits, uint16."""
    return tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor


def as_factor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of factors: as it is, for the matrix units, but in the interpreter as elements."""
    return as_stored(tensor) if interpreted() else tensor


@triton.jit
def product(
    p_b: tl.tensor, p_a: tl.tensor, next_group: tl.tensor, slices: tl.tensor, FACTOR: tl.constexpr, LONG: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """B @ A of one adapter on a step, as its two groups of 32 columns, float32, summed over slices of the rank in
    order. p_b, p_a: pointers to the elements of the first slice, of A in the first group. next_group: elements from a
    group to the next. LONG: more than one slice."""
    b_b = load_b(p_b, BAND, SLICE, FACTOR)
    b_zero = tl.zeros((BAND, GROUP), tl.float32)
    b_0 = multiply(b_b, load_a(p_a, SLICE, GROUP, FACTOR), b_zero)
    b_1 = multiply(b_b, load_a(p_a + next_group, SLICE, GROUP, FACTOR), b_zero)
    if LONG:
        for i_slice in range(1, slices):
            b_b = load_b(p_b + i_slice * SLICE_B, BAND, SLICE, FACTOR)
            b_0 = multiply(b_b, load_a(p_a + i_slice * SLICE_A, SLICE, GROUP, FACTOR), b_0)
            b_1 = multiply(b_b, load_a(p_a + (i_slice * SLICE_A + next_group), SLICE, GROUP, FACTOR), b_1)
    return in_columns(b_0, BAND, GROUP), in_columns(b_1, BAND, GROUP)


@triton.jit
def delta(
    p_b: tl.tensor,
    p_a: tl.tensor,
    scales: tl.tensor,
    adapters: tl.tensor,
    slices: tl.tensor,
    FACTOR: tl.constexpr,
    MANY: tl.constexpr,
    LONG: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """dW of a step, as its two groups: scale * (B @ A) of each adapter, float32, added in order. MANY: more than
    one."""
    next_group = adapters * slices * SLICE_A
    b_0, b_1 = product(p_b, p_a, next_group, slices, FACTOR, LONG)
    scale = tl.load(scales)
    b_0, b_1 = b_0 * scale, b_1 * scale
    if MANY:
        for i_adapter in range(1, adapters):
            skip = i_adapter * slices
            b_more_0, b_more_1 = product(p_b + skip * SLICE_B, p_a + skip * SLICE_A, next_group, slices, FACTOR, LONG)
            scale = tl.load(scales + i_adapter)
            b_0 += b_more_0 * scale
            b_1 += b_more_1 * scale
    return b_0, b_1
