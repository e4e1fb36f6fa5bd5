"""What the device can reach, to judge kernels by: bandwidths of several mixes, and the sums of its matrix units."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
import triton
import triton.language as tl

from benchmarks.gpu.place import Place

_BLOCK: Final = 4096
_WARPS: Final = 4
# Half of an H200's L2 cache, read again and again.
_IN_CACHE: Final = 30 << 20
_REPEATS: Final = 100


@triton.jit
def read_kernel(source: tl.tensor, found: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Read int32 numbers. found: written where a block is all ones, so that the reads are needed."""
    i_program = tl.program_id(0).to(tl.int64)
    b_all = tl.load(source + i_program * BLOCK + tl.arange(0, BLOCK))
    if tl.min(b_all) == 0x7FFFFFFF:
        tl.store(found, 1)


@triton.jit
def expand_kernel(source: tl.tensor, out: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Read int32 numbers and write four for each, as a dequantization of 4-bit codes does with bytes."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    # One number a thread: with more the results would go through shared memory.
    b_some = tl.load(source + start + tl.max_contiguous(tl.arange(0, BLOCK), 1))
    b_twice = tl.join(b_some, b_some)
    tl.store(out + 4 * start + tl.arange(0, 4 * BLOCK), tl.reshape(tl.join(b_twice, b_twice), (4 * BLOCK,)))


@triton.jit
def sum_kernel(a: tl.tensor, b: tl.tensor, out: tl.tensor, K: tl.constexpr, ROWS: tl.constexpr) -> None:
    o_rows, o_rank, o_columns = tl.arange(0, ROWS), tl.arange(0, K), tl.arange(0, 32)
    b_a = tl.load(a + o_rows[:, None] * K + o_rank[None, :])
    b_b = tl.load(b + o_rank[:, None] * 32 + o_columns[None, :])
    tl.store(out + o_rows[:, None] * 32 + o_columns[None, :], tl.dot(b_a, b_b))


def bandwidths(place: Place) -> Iterator[dict[str, Any]]:
    """Bytes per second of each mix, over memory of twice the rotation; None without a clock."""
    size = max(2 * place.rotation, 2 * 4 * _BLOCK)
    source = torch.randint(0, 100, (size // 4,), dtype=torch.int32, device=place.device)
    target = torch.empty_like(source)
    found = torch.zeros((), dtype=torch.int32, device=place.device)
    quarter = source[: source.numel() // 4]
    cached = source[: max(min(_IN_CACHE, size) // 4 // _BLOCK, 1) * _BLOCK]

    def read(numbers: torch.Tensor) -> None:
        read_kernel[(numbers.numel() // _BLOCK,)](numbers, found, BLOCK=_BLOCK, num_warps=_WARPS)

    def expand() -> None:
        expand_kernel[(source.numel() // _BLOCK,)](quarter, target, BLOCK=_BLOCK // 4, num_warps=_WARPS)

    def from_cache() -> None:
        for _ in range(1 if place.dry else _REPEATS):
            read(cached)

    mixes: list[tuple[str, int, Callable[[], object]]] = [
        ("copy", 2 * size, lambda: target.copy_(source)),
        ("read", size, lambda: read(source)),
        ("write", size, lambda: target.fill_(7)),
        ("read 1, write 4", size + size // 4, expand),
        ("read from the L2 cache", 4 * cached.numel() * _REPEATS, from_cache),
    ]
    for name, moved, run in mixes:
        warm = place.warm(run)
        known = [taken for taken in (place.time(run, warm) for _ in range(place.rounds)) if taken is not None]
        yield {
            "mix": name,
            "bytes": moved,
            "bytes_per_second": moved / statistics.median(known) if known else None,
            "best": moved / min(known) if known else None,
        }


def matrix_unit_sums(place: Place) -> Iterator[dict[str, Any]]:
    """1 plus K - 1 products of 2^-24, which IEEE float32 in any order of single additions leaves at 1 or rounds up by
    at most their sum; units that align and truncate leave 1. With the sign of the first term turned, what is
    truncated shows on the other side. By one warp (mma) and by four (wgmma)."""
    for rank, rows, warps in ((16, 16, 1), (64, 16, 1), (16, 64, 4), (64, 64, 4)):
        for first in (1.0, -1.0):
            a = torch.full((rows, rank), 2.0**-12, dtype=torch.float16, device=place.device)
            b = torch.full((rank, 32), 2.0**-12, dtype=torch.float16, device=place.device)
            a[:, 0], b[0] = first, 1.0
            out = torch.full((rows, 32), torch.nan, device=place.device)
            sum_kernel[(1,)](a, b, out, K=rank, ROWS=rows, num_warps=warps)
            exact = first + (rank - 1) * 2.0**-24
            yield {
                "rank": rank,
                "rows": rows,
                "warps": warps,
                "first": first,
                "error_in_ulps_of_one": (float(out[0, 0]) - exact) * 2.0**23,
                "all_equal": bool((out == out[0, 0]).all()),
            }
