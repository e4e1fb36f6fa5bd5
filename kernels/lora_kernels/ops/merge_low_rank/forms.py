"""The forms in which `rows` is compiled: which adapters it holds in registers, and how much of W it takes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from lora_kernels.ops import aot, tables
from lora_kernels.ops.arrange import Arrangement
from lora_kernels.ops.configs import MERGE_ROWS
from lora_kernels.ops.fragments import UNIT, WIDTHS
from lora_kernels.ops.launch import ELEMENTS, TABLE_TYPES, on, options
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.merge_low_rank.partials import SUMS, sums_without_count
from lora_kernels.ops.merge_low_rank.rows import merge_rows_kernel

Item = tuple[torch.Tensor, Sequence[LowRank], torch.Tensor]

# Adapters, times their rank, times planes, of which B stays in registers; with groups of a pass that then fit too.
_HELD: Final = 96
_HELD_IN_PAIRS: Final = 64
_MOST_ADAPTERS: Final = 4
# Rank that is multiplied at once.
_SLICE: Final = 64


@dataclass(frozen=True, slots=True)
class Form:
    """A compiled kernel and its tables.

    Args:
        w, out, factor: dtypes.
        held: number of adapters whose B stays in registers; 0 for any number.
        rank: of all adapters, filled with zeros.
        stats: as in `merge_low_rank`.
        whole: blocks and passes divide the matrix.
    """

    w: torch.dtype
    out: torch.dtype
    factor: torch.dtype
    held: int
    rank: int
    stats: bool
    whole: bool

    @property
    def planes(self) -> int:
        return planes_of(self.factor)

    @property
    def width(self) -> int:
        return WIDTHS[self.w.itemsize]

    @property
    def block_rows(self) -> int:
        """Statistics take registers, and so do planes that are read again."""
        return 16 if self.stats or (not self.held and self.planes > 1) else 32

    @property
    def groups(self) -> int:
        return 2 if 0 < self.held * self.rank * self.planes <= _HELD_IN_PAIRS else 1

    @property
    def passes(self) -> int:
        return MERGE_ROWS.columns // (self.groups * self.width)

    def constants(self) -> dict[str, Any]:
        """The compile-time arguments."""
        return {
            "ELEMENT": ELEMENTS[self.w],
            "OUTPUT": ELEMENTS[self.out],
            "FACTOR": ELEMENTS[torch.bfloat16 if self.planes > 1 else self.factor],
            "PLANES": self.planes,
            "HELD": self.held,
            "RANK": min(self.rank, _SLICE),
            "STATS": self.stats,
            "WHOLE": self.whole,
            "BLOCK_ROWS": self.block_rows,
            "WIDTH": self.width,
            "GROUPS": self.groups,
            "PASSES": self.passes,
        }


def form_of(item: Item, *, stats: bool) -> Form | None:
    """The form for a matrix; None if `rows` cannot walk along it: for lack of alignment or of adapters, or if elements
    of W and of the output differ in size."""
    w, adapters, out = item
    present = [adapter for adapter in adapters if adapter.rank]
    if tables.lies_by_columns(w):
        w, out = w.T, out.T
    if not present or w.itemsize != out.itemsize or not (tables.is_aligned(w) and tables.is_aligned(out)):
        return None
    factor, held, rank = form_of_factors(present)
    form = Form(w.dtype, out.dtype, factor, held, rank, stats, whole=True)
    if w.shape[0] % form.block_rows or w.shape[1] % (form.groups * form.width):
        form = Form(w.dtype, out.dtype, factor, held, rank, stats, whole=False)
    return form


def form_of_factors(present: Sequence[LowRank]) -> tuple[torch.dtype, int, int]:
    """The dtype, `held` and `rank` of a form, for at least one adapter of a rank above 0."""
    dtypes = {factor.dtype for adapter in present for factor in (adapter.a, adapter.b)}
    factor = dtypes.pop() if len(dtypes) == 1 else torch.float32
    rank = _filled(max(adapter.rank for adapter in present))
    size = len(present) * rank * planes_of(factor)
    return factor, len(present) if len(present) <= _MOST_ADAPTERS and size <= _HELD else 0, rank


def planes_of(factor: torch.dtype) -> int:
    """Matrices of 16-bit elements that a factor consists of."""
    return 3 if factor == torch.float32 else 1


def _filled(rank: int) -> int:
    """The rank filled up to a power of two, at least 16, or to a multiple of 64."""
    return -(-rank // _SLICE) * _SLICE if rank > _SLICE else max(UNIT, 1 << (rank - 1).bit_length())


def launch(items: Sequence[Item], form: Form) -> torch.Tensor | None:
    """Merge items of one form. Returns `partials.sums_without_count` if statistics are requested."""
    constants = form.constants()
    table = tables.build(
        [(w, out) for w, _, out in items], [group for _, group, _ in items],
        rows=form.block_rows, columns=MERGE_ROWS.columns,
        arrangement=Arrangement(
            rank=form.rank, rows=form.block_rows, width=form.width, slice_rank=constants["RANK"],
            groups=form.groups, planes=form.planes,
        ),
    )  # fmt: skip
    partials = torch.empty((table.programs if form.stats else 0, SUMS), device=table.jobs.device)
    if table.programs:
        with on(table.jobs.device):
            merge_rows_kernel[(table.programs,)](
                table.jobs, table.factors, table.scales, table.owners, partials, **constants, **options(MERGE_ROWS)
            )
    return sums_without_count(partials, table.tile_counts) if form.stats else None


def variants() -> list[aot.Variant]:
    """One to four adapters, any number and high ranks, all dtypes, with and without statistics and masks."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return [
        _variant(Form(element, element, factor, held, rank, stats, whole))
        for element, factor, held, rank, stats, whole in (
            (bf16, bf16, 1, 16, False, True),
            (bf16, bf16, 1, 64, False, True),
            (bf16, bf16, 2, 16, False, True),
            (bf16, bf16, 4, 16, False, True),
            (bf16, bf16, 0, 64, False, True),
            (bf16, bf16, 1, 16, False, False),
            (bf16, bf16, 1, 16, True, True),
            (bf16, bf16, 4, 16, True, True),
            (bf16, bf16, 0, 64, True, False),
            (bf16, fp32, 1, 16, False, True),
            (bf16, fp32, 1, 32, True, True),
            (bf16, fp32, 0, 64, True, False),
            (fp16, fp16, 1, 16, True, True),
            (fp32, bf16, 1, 16, True, True),
            (fp32, fp32, 1, 16, False, False),
        )
    ]


def name(form: Form) -> str:
    """The name of a form's variant. The rank of any number of adapters is that of a slice."""
    adapters = f"{form.held} x {form.rank}" if form.held else f"any number x {min(form.rank, _SLICE)}"
    more = f"{', stats' if form.stats else ''}{'' if form.whole else ', masked'}"
    return f"merge_low_rank {ELEMENTS[form.w]}, factors {ELEMENTS[form.factor]}, {adapters}{more}"


def _variant(form: Form) -> aot.Variant:
    return aot.Variant(
        name=name(form),
        kernel=merge_rows_kernel,
        types=TABLE_TYPES | {"partials": "*fp32"},
        constants=form.constants(),
        config=MERGE_ROWS,
        steps=form.passes,
        elements=form.block_rows * form.groups * form.width,
    )
