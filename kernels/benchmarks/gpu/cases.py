"""Cases of the GPU benchmark: each operation, the bytes that it must move, its exact result, and a peer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from lora_kernels.ops import (
    FourBit,
    Int8Rows,
    LowRank,
    MergeJob,
    dare_merge,
    dequant_blockwise,
    empty_nf4,
    merge_dora,
    merge_low_rank_grouped,
    merge_quantized,
    requantize_nf4,
    tensor_stats_grouped,
    ties_merge,
)
from lora_kernels.ops.dare_merge import in_torch as dare_reference
from lora_kernels.ops.merge_dora import in_torch as dora_reference
from lora_kernels.ops.merge_low_rank import in_torch as merge_reference
from lora_kernels.ops.merge_quantized import in_torch as quantized_reference
from lora_kernels.ops.quantized import Quantized
from lora_kernels.ops.testing import assert_close

Shape = tuple[int, int]
Item = tuple[Any, Any]
"""(input, output): tensors, or weights as `lora_kernels.ops` takes them."""

_KEYS: Final = [1, 2, 3, 4]
_WEIGHTS: Final = [1.0, 0.5, -1.0, 0.25]


@dataclass(frozen=True, slots=True)
class Case:
    """A case.

    Args:
        prepare: returns one matrix and its output.
        run: runs the operation on each item.
        moved: bytes that the operation must read and write at least, without the factors.
        check: raises AssertionError for a wrong result; None if only the tests check it.
        peer: the same in plain torch, as PEFT does it; None if there is none.
        bar: minimum share of the copy's bandwidth; None if the design has none.
    """

    name: str
    prepare: Callable[[], Item]
    run: Callable[[Sequence[Item]], object]
    moved: Callable[[Item], int]
    check: Callable[[Item], None] | None = None
    peer: Callable[[Sequence[Item]], object] | None = None
    bar: float | None = None


def cases(shape: Shape) -> list[Case]:
    return [*_dense(shape), *_quantized(shape), *_sparse(shape)]


def _dense(shape: Shape) -> list[Case]:
    one = loras(shape, 1, 16)
    magnitude = normal((shape[0],), 1.0)

    def read_twice(item: Item) -> int:
        return 2 * size(item[0]) + size(item[1])

    return [
        *(_merge(shape, count, rank) for count, rank in ((1, 16), (2, 16), (4, 16), (1, 64), (4, 64))),
        Case(
            "merge 1 x rank 16, statistics",
            lambda: dense(shape),
            lambda items: merge_low_rank_grouped([MergeJob(w, one, out) for w, out in items], stats=True),
            both,
            bar=0.9,
        ),
        Case(
            "DoRA rank 16",
            lambda: dense(shape),
            lambda items: [merge_dora(w, one[0], magnitude, out=out) for w, out in items],
            read_twice,
            lambda item: _against(
                item,
                lambda w, out: dora_reference.merge(w, one[0], magnitude, out, compute=_compute(out)),
                lambda w, out: merge_dora(w, one[0], magnitude, out=out),
            ),
        ),
        Case(
            "statistics of a tensor",
            lambda: dense(shape),
            lambda items: tensor_stats_grouped([w for w, _ in items]),
            lambda item: size(item[0]),
        ),
    ]


def _merge(shape: Shape, count: int, rank: int) -> Case:
    adapters = loras(shape, count, rank)

    def run(items: Sequence[Item]) -> object:
        return merge_low_rank_grouped([MergeJob(w, adapters, out) for w, out in items])

    def peer(items: Sequence[Item]) -> object:
        return [out.copy_(w).add_(_delta(adapters)) for w, out in items]

    return Case(
        f"merge {count} x rank {rank}",
        lambda: dense(shape),
        run,
        both,
        lambda item: _against(
            item,
            lambda w, out: merge_reference.merge([(w, adapters, out)], stats=False, compute=_compute(out)),
            lambda w, out: run([(w, out)]),
        ),
        peer,
        bar=0.9 if rank == 16 else None,
    )


def _quantized(shape: Shape) -> list[Case]:
    one = loras(shape, 1, 16)

    def merged(item: Item) -> None:
        _against(
            item,
            lambda w, out: quantized_reference.merge(w, one, out, stats=False, compute=_compute(out)),
            lambda w, out: merge_quantized(w, one, out=out),
        )

    def merge(items: Sequence[Item]) -> object:
        return [merge_quantized(w, one, out=out) for w, out in items]

    return [
        Case(
            "NF4 to bf16",
            lambda: (nf4(shape), _empty(shape)),
            lambda items: [dequant_blockwise(w, out=out) for w, out in items],
            both,
            bar=0.8,
        ),
        Case("NF4 to bf16, merge 1 x rank 16", lambda: (nf4(shape), _empty(shape)), merge, both, merged, bar=0.8),
        Case("int8 to bf16, merge 1 x rank 16", lambda: (_int8(shape), _empty(shape)), merge, both, merged),
        Case(
            "NF4 to NF4, merge 1 x rank 16",
            lambda: (nf4(shape), empty_nf4(shape, blocksize=64, nested=True, device=torch.device("cuda"))),
            lambda items: [requantize_nf4(w, one, out=out) for w, out in items],
            both,
            bar=0.7,
        ),
        Case(
            "bf16 to NF4, merge 1 x rank 16",
            lambda: (normal(shape, 0.02), empty_nf4(shape, blocksize=64, nested=True, device=torch.device("cuda"))),
            lambda items: [requantize_nf4(w, one, out=out) for w, out in items],
            both,
            bar=0.7,
        ),
    ]


def _sparse(shape: Shape) -> list[Case]:
    four = loras(shape, 4, 16)
    ties: dict[str, Any] = {"weights": _WEIGHTS, "density": 0.2}
    dare: dict[str, Any] = {"weights": _WEIGHTS, "density": 0.5, "keys": _KEYS}
    return [
        # Near the threshold the last bit decides which elements are kept, so that float64 keeps others: see the tests.
        Case(
            "TIES of 4 x rank 16",
            lambda: dense(shape),
            lambda items: [ties_merge(w, four, out=out, **ties) for w, out in items],
            both,
        ),
        Case(
            "DARE of 4 x rank 16",
            lambda: dense(shape),
            lambda items: [dare_merge(w, four, out=out, **dare) for w, out in items],
            both,
            lambda item: _against(
                item,
                lambda w, out: dare_reference.merge(w, four, out, **dare, method=None, compute=_compute(out)),
                lambda w, out: dare_merge(w, four, out=out, **dare),
            ),
        ),
    ]


def dense(shape: Shape) -> Item:
    return normal(shape, 0.02), _empty(shape)


def nf4(shape: Shape) -> FourBit:
    return requantize_nf4(normal(shape, 0.02))


def loras(shape: Shape, count: int, rank: int) -> list[LowRank]:
    return [LowRank(normal((shape[0], rank), 0.02), normal((rank, shape[1]), 0.02), scale=2.0) for _ in range(count)]


def normal(shape: tuple[int, ...], scale: float) -> torch.Tensor:
    return (torch.randn(shape, device="cuda") * scale).bfloat16()


def size(part: torch.Tensor | Quantized) -> int:
    """Bytes of a weight, without lookup tables."""
    if isinstance(part, Int8Rows):
        return part.codes.nbytes + part.scb.nbytes
    if isinstance(part, FourBit):
        return part.packed.nbytes + part.absmax.nbytes + (part.nested.absmax.nbytes if part.nested else 0)
    return part.nbytes


def both(item: Item) -> int:
    return size(item[0]) + size(item[1])


def _int8(shape: Shape) -> Int8Rows:
    codes = torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")
    return Int8Rows(codes, torch.rand(shape[0], device="cuda") * 0.1)


def _empty(shape: Shape) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda")


def _delta(adapters: Sequence[LowRank]) -> torch.Tensor:
    total = (adapters[0].b.float() @ adapters[0].a.float()).mul_(adapters[0].scale)
    for adapter in adapters[1:]:
        total += (adapter.b.float() @ adapter.a.float()).mul_(adapter.scale)
    return total


def _against(item: Item, exact: Callable[[Any, torch.Tensor], object], run: Callable[[Any, Any], object]) -> None:
    """Check that the result is as close to float64 as plain torch is. The output is filled with NaN first."""
    w, out = item
    in_float64, as_torch = torch.empty_like(out, dtype=torch.float64), torch.empty_like(out)
    exact(w, in_float64)
    exact(w, as_torch)
    got = torch.full_like(out, float("nan"))
    run(w, got)
    assert_close(got, in_float64, as_torch=as_torch, factor=2.0)


def _compute(out: torch.Tensor) -> torch.dtype:
    return torch.float64 if out.dtype == torch.float64 else torch.float32
