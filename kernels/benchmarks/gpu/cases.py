"""Cases of the GPU benchmark: each operation, its inputs, the bytes that it must move, its kernels, its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch

from benchmarks.gpu import checks
from benchmarks.gpu.place import Place, Shape
from lora_kernels.ops import (
    FourBit,
    Int8Rows,
    LowRank,
    dare_merge,
    dequant_blockwise,
    empty_nf4,
    merge_dora,
    merge_quantized,
    requantize_nf4,
    tensor_stats,
    ties_merge,
)
from lora_kernels.ops.dare_merge import in_torch as dare_reference
from lora_kernels.ops.merge_dora import in_torch as dora_reference
from lora_kernels.ops.merge_low_rank import forms
from lora_kernels.ops.merge_low_rank import in_torch as merge_reference
from lora_kernels.ops.merge_low_rank import kernel as merge_kernel
from lora_kernels.ops.merge_quantized import in_torch as quantized_reference
from lora_kernels.ops.quantized import Quantized
from lora_kernels.ops.quantized import in_torch as dequantize_reference
from lora_kernels.ops.requantize_nf4 import in_torch as requantize_reference
from lora_kernels.ops.tensor_stats import kernel as stats_kernel
from lora_kernels.ops.ties_merge import in_torch as ties_reference

Item = tuple[Any, Any]
"""(input, output): tensors, or weights as `lora_kernels.ops` takes them."""
Mix = Literal["copy", "read", "read 1, write 4"]

_KEYS: Final = [1, 2, 3, 4]
_WEIGHTS: Final = [1.0, 0.5, -1.0, 0.25]
# Of a checkpoint's block.
_BLOCKSIZE: Final = 64


@dataclass(frozen=True, slots=True)
class Case:
    """A case, on one shape.

    Args:
        prepare: returns one matrix and its output.
        run: runs the operation on each item, without waiting for the device.
        moved: bytes that the operation must read and write at least, without the factors. The only place that counts
            them.
        check: raises AssertionError for a wrong result.
        variants: the rows of the instruction table that it runs, by the beginning of their names.
        kernels: the names of its kernels, for ncu.
        mix: the ceiling that is like its own mix of reads and writes.
        peer: the same in plain torch, as PEFT does it; None if there is none.
    """

    name: str
    prepare: Callable[[], Item]
    run: Callable[[Sequence[Item]], object]
    moved: Callable[[Item], int]
    check: Callable[[], None]
    variants: tuple[str, ...]
    kernels: tuple[str, ...]
    mix: Mix = "copy"
    peer: Callable[[Sequence[Item]], object] | None = None


class Inputs:
    """Random inputs of one shape at one place."""

    def __init__(self, place: Place, shape: Shape) -> None:
        self.device, self.shape = place.device, shape

    def normal(self, shape: Sequence[int], scale: float) -> torch.Tensor:
        return (torch.randn(tuple(shape), device=self.device) * scale).bfloat16()

    def weight(self) -> torch.Tensor:
        return self.normal(self.shape, 0.02)

    def unusual(self) -> torch.Tensor:
        """A weight with NaN, infinities and subnormal numbers in its first row."""
        w = self.weight()
        first = torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0**-130, -(2.0**-133), -0.0], device=self.device)
        w[0, : len(first)] = first.bfloat16()
        return w

    def empty(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=torch.bfloat16, device=self.device)

    def dense(self) -> Item:
        return self.weight(), self.empty()

    def loras(self, count: int, rank: int) -> list[LowRank]:
        rows, columns = self.shape
        return [
            LowRank(self.normal((rows, rank), 0.02), self.normal((rank, columns), 0.02), scale=2.0)
            for _ in range(count)
        ]

    def whole(self, count: int, rank: int) -> list[LowRank]:
        """Adapters of small whole numbers: their deltas are exact in float32, in whatever order they are summed."""
        rows, columns = self.shape

        def factor(*shape: int) -> torch.Tensor:
            return torch.randint(-3, 4, shape, device=self.device).bfloat16()

        return [
            LowRank(factor(rows, rank), factor(rank, columns), scale=0.25 * (-1) ** index) for index in range(count)
        ]

    def nf4(self) -> FourBit:
        out = self.empty_nf4()
        requantize_reference.requantize(self.weight(), (), out)
        return out

    def empty_nf4(self) -> FourBit:
        return empty_nf4(self.shape, blocksize=_BLOCKSIZE, nested=True, device=self.device)

    def int8(self) -> Int8Rows:
        codes = torch.randint(-127, 128, self.shape, dtype=torch.int8, device=self.device)
        return Int8Rows(codes, torch.rand(self.shape[0], device=self.device) * 0.1)


def cases(place: Place, shape: Shape) -> list[Case]:
    """Every operation. A shape whose columns are not whole blocks has no cases of NF4."""
    inputs = Inputs(place, shape)
    return [*_merges(inputs), *_passes(inputs), *_quantized(inputs), *_sparse(inputs)]


def _merges(inputs: Inputs) -> list[Case]:
    counts = ((1, 16), (2, 16), (4, 16), (1, 64), (4, 64))
    plain = [_merge(inputs, f"merge {count} x rank {rank}", inputs.loras(count, rank)) for count, rank in counts]
    one = inputs.loras(1, 16)[0]
    wide = replace(one, a=one.a.float(), b=one.b.float())
    return [
        *plain,
        _merge(inputs, "merge 1 x rank 16, statistics", [one], stats=True),
        _merge(inputs, "merge 1 x rank 16, float32 factors", [wide]),
    ]


def _merge(inputs: Inputs, name: str, adapters: list[LowRank], *, stats: bool = False) -> Case:
    def run(items: Sequence[Item]) -> object:
        return merge_kernel.launch([(w, adapters, out) for w, out in items], stats=stats)

    def peer(items: Sequence[Item]) -> object:
        return [out.copy_(w).add_(_delta(adapters)) for w, out in items]

    shape_of = torch.empty(inputs.shape, dtype=torch.bfloat16, device="meta")
    form = forms.form_of((shape_of, adapters, shape_of), stats=stats)
    assert form is not None, "the shape is not aligned"
    return Case(
        name,
        inputs.dense,
        run,
        both,
        lambda: checks.close(
            inputs.unusual(), inputs.empty(), lambda w, out: run([(w, out)]),
            lambda w, out, compute: merge_reference.merge([(w, adapters, out)], stats=False, compute=compute),
        ),
        (forms.name(replace(form, whole=True)),),
        ("merge_rows_kernel",),
        peer=peer,
    )  # fmt: skip


def _passes(inputs: Inputs) -> list[Case]:
    (one,), magnitude = inputs.loras(1, 16), inputs.normal(inputs.shape[:1], 1.0)

    def dora(w: Any, out: Any) -> object:
        return merge_dora(w, one, magnitude, out=out, backend="triton")

    def read_twice(item: Item) -> int:
        return 2 * size(item[0]) + size(item[1])

    def stats() -> None:
        w = inputs.unusual()
        got, exact = (tensor_stats(w, backend=backend) for backend in ("triton", "torch"))
        assert got[1:] == exact[1:], (got, exact)
        assert abs(got.sum_squares - exact.sum_squares) <= 2.0**-21 * exact.sum_squares, (got, exact)

    return [
        Case(
            "DoRA rank 16",
            inputs.dense,
            lambda items: [dora(w, out) for w, out in items],
            read_twice,
            lambda: checks.close(
                inputs.weight(), inputs.empty(), dora,
                lambda w, out, compute: dora_reference.merge(w, one, magnitude, out, compute=compute),
            ),
            ("merge_dora rows norms bf16, rank 16", "merge_dora rows scale bf16, rank 16"),
            ("row_squares_kernel", "scale_rows_kernel"),
        ),
        Case(
            "statistics of a tensor",
            inputs.dense,
            lambda items: stats_kernel.sums([w for w, _ in items]),
            lambda item: size(item[0]),
            stats,
            ("tensor_stats bf16, aligned",),
            ("tensor_stats_kernel",),
            mix="read",
        ),
    ]  # fmt: skip


def _quantized(inputs: Inputs) -> list[Case]:
    one, whole = inputs.loras(1, 16), inputs.whole(1, 16)

    def merge(w: Any, out: Any) -> object:
        return merge_quantized(w, one, out=out, backend="triton")

    def dequantize(w: Any, out: Any) -> object:
        return dequant_blockwise(w, out=out, backend="triton")

    def merged(make: Callable[[], Quantized]) -> Callable[[], None]:
        return lambda: checks.close(
            make(), inputs.empty(), merge,
            lambda w, out, compute: quantized_reference.merge(w, one, out, stats=False, compute=compute),
        )  # fmt: skip

    def requantized(make: Callable[[], Any]) -> Callable[[], None]:
        return lambda: checks.equal(
            make(), inputs.empty_nf4(), inputs.empty_nf4(),
            lambda w, out: requantize_nf4(w, whole, out=out, backend="triton"),
            lambda w, out: requantize_reference.requantize(w, whole, out),
        )  # fmt: skip

    def requantize(items: Sequence[Item]) -> object:
        return [requantize_nf4(w, one, out=out, backend="triton") for w, out in items]

    def merge_all(items: Sequence[Item]) -> object:
        return [merge(w, out) for w, out in items]

    return [
        Case(
            "NF4 to bf16",
            lambda: (inputs.nf4(), inputs.empty()),
            lambda items: [dequantize(w, out) for w, out in items],
            both,
            lambda: checks.equal(
                inputs.nf4(), inputs.empty(), inputs.empty(), dequantize,
                lambda w, out: out.copy_(dequantize_reference.dequantize(w)),
            ),
            ("dequant_blockwise 4-bit, nested to bf16, aligned",),
            ("dequant_blockwise_kernel",),
            mix="read 1, write 4",
        ),
        Case(
            "NF4 to bf16, merge 1 x rank 16", lambda: (inputs.nf4(), inputs.empty()), merge_all, both,
            merged(inputs.nf4), ("merge_quantized 4-bit, nested to bf16, factors bf16, 1 x 16, aligned",),
            ("bands_kernel",), mix="read 1, write 4",
        ),
        Case(
            "int8 to bf16, merge 1 x rank 16", lambda: (inputs.int8(), inputs.empty()), merge_all, both,
            merged(inputs.int8), ("merge_quantized int8 to bf16, factors bf16, 1 x 16, aligned",), ("bands_kernel",),
        ),
        Case(
            "bf16 to NF4, merge 1 x rank 16", lambda: (inputs.weight(), inputs.empty_nf4()), requantize, both,
            requantized(inputs.weight), ("requantize_nf4 bf16 to blocks of 64, factors bf16, 1 x 16, aligned",),
            ("bands_kernel",), mix="read",
        ),
        Case(
            "NF4 to NF4, merge 1 x rank 16", lambda: (inputs.nf4(), inputs.empty_nf4()), requantize, both,
            requantized(inputs.nf4), ("requantize_nf4 4-bit, nested to blocks of 64, factors bf16, 1 x 16, aligned",),
            ("bands_kernel",),
        ),
    ]  # fmt: skip


def _sparse(inputs: Inputs) -> list[Case]:
    four, whole = inputs.loras(4, 16), inputs.whole(4, 16)
    ties: dict[str, Any] = {"weights": _WEIGHTS, "density": 0.2}
    dare: dict[str, Any] = {"weights": _WEIGHTS, "density": 0.5, "keys": _KEYS}

    def into(operation: Callable[..., object], adapters: list[LowRank], options: dict[str, Any]) -> checks.Into:
        return lambda w, out: operation(w, adapters, out=out, backend="triton", **options)

    def each(one: checks.Into) -> Callable[[Sequence[Item]], object]:
        return lambda items: [one(w, out) for w, out in items]

    # Near the threshold the last bit decides which elements are kept: only exact deltas can be compared.
    return [
        Case(
            "TIES of 4 x rank 16", inputs.dense, each(into(ties_merge, four, ties)), both,
            lambda: checks.equal(
                inputs.weight(), inputs.empty(), inputs.empty(), into(ties_merge, whole, ties),
                lambda w, out: ties_reference.merge(w, whole, out, method="total", **ties),
            ),
            ("ties rows count rank 16, bf16", "ties rows total 4 x rank 16, bf16"),
            ("count_rows_kernel", "sparse_rows_kernel"),
        ),
        Case(
            "DARE of 4 x rank 16", inputs.dense, each(into(dare_merge, four, dare)), both,
            lambda: checks.equal(
                inputs.weight(), inputs.empty(), inputs.empty(), into(dare_merge, whole, dare),
                lambda w, out: dare_reference.merge(w, whole, out, method=None, **dare),
            ),
            ("dare rows linear 4 x rank 16, bf16",), ("sparse_rows_kernel",),
        ),
    ]  # fmt: skip


def size(part: torch.Tensor | Quantized) -> int:
    """Bytes of a weight, without lookup tables."""
    if isinstance(part, Int8Rows):
        return part.codes.nbytes + part.scb.nbytes
    if isinstance(part, FourBit):
        return part.packed.nbytes + part.absmax.nbytes + (part.nested.absmax.nbytes if part.nested else 0)
    return part.nbytes


def both(item: Item) -> int:
    return size(item[0]) + size(item[1])


def _delta(adapters: Sequence[LowRank]) -> torch.Tensor:
    total = (adapters[0].b.float() @ adapters[0].a.float()).mul_(adapters[0].scale)
    for adapter in adapters[1:]:
        total += (adapter.b.float() @ adapter.a.float()).mul_(adapter.scale)
    return total
