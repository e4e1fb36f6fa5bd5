"""A wave on the device: one launch for its low-rank updates, one call of an operation for each other tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from lora_kernels import ops
from lora_kernels.merging.device.operands import DTYPES, Operands
from lora_kernels.merging.device.work import Part
from lora_kernels.merging.plan import TensorPlan
from lora_kernels.merging.writers import nf4_head
from lora_kernels.numeric.blocks import matrix
from lora_kernels.numeric.sums import UpdateSums
from lora_kernels.ops import FourBit, LowRank, MergeJob
from lora_kernels.quantized.absmax import NestedAbsmax, PlainAbsmax
from lora_kernels.quantized.layout import Nf4Form
from lora_kernels.quantized.weights import QLORA

# Below it, 2^-40, squares of an update underflow float32: the host sums them in float64.
_SMALLEST: Final = 2.0**-40
# Elements that are measured at a time, in float64.
_BLOCK: Final = 1 << 23

Update = Callable[[int, int], torch.Tensor]
"""Returns dW of the rows r0:r1, float32."""


class Uploaded(NamedTuple):
    """A part with the bytes of its weights, or of their codes, on the device."""

    part: Part
    raw: torch.Tensor


class Computed(NamedTuple):
    """The bytes of a part: `head`, then the uint8 tensor `body` on the device; and the sums of its update, without
    those of an update if it has none."""

    head: bytes
    body: torch.Tensor
    sums: UpdateSums
    max_delta: float


class _Measured(NamedTuple):
    """As `ops.merge_low_rank.MergeStats`."""

    sums: UpdateSums
    max_delta: float
    non_finite: int


def compute_wave(wave: Sequence[Uploaded], operands: Operands, backend: Any) -> list[Computed | None]:
    """Compute parts, in their order. None for a part that the host is to compute again, since values are not finite or
    squares leave float32's range: it raises the precise error, or sums in float64.

    Raises RegistryError as `Operands` does.
    """
    found: dict[int, Computed | None] = {}
    low_rank = [index for index, item in enumerate(wave) if item.part.kind == "low-rank"]
    found |= zip(low_rank, _low_rank([wave[index] for index in low_rank], operands, backend), strict=True)
    for index, item in enumerate(wave):
        if index not in found:
            one = _dora if item.part.kind == "dora" else _quantized
            found[index] = one(item, operands, backend)
    return [found[index] for index in range(len(wave))]


def _low_rank(wave: Sequence[Uploaded], operands: Operands, backend: Any) -> list[Computed | None]:
    jobs = [_job(item, operands) for item in wave]
    merged = ops.merge_low_rank_grouped(jobs, stats=True, backend=backend)
    return [_checked(b"", result.weight, result.stats) for result in merged]


def _job(item: Uploaded, operands: Operands) -> MergeJob:
    part, tensor = item.part, item.part.tensor
    columns = matrix(tensor.shape, tensor.columns)[1]
    weight = item.raw.view(DTYPES[tensor.source_dtype]).reshape(part.r1 - part.r0, columns)
    out = weight if part.in_place else torch.empty_like(weight, dtype=DTYPES[tensor.dtype])
    return MergeJob(weight, operands.adapters(part), out, tensor.name)


def _quantized(item: Uploaded, operands: Operands, backend: Any) -> Computed | None:
    tensor, weight, adapters = item.part.tensor, _weight(item, operands, backend), operands.adapters(item.part)
    form = tensor.form
    if form is None:
        merged = ops.merge_quantized(weight, adapters, dtype=DTYPES[tensor.dtype], stats=True, backend=backend)
        return _checked(b"", merged.weight, merged.stats)
    written = ops.requantize_nf4(weight, adapters, blocksize=form.blocksize, nested=form.nested, backend=backend)
    before = _values(weight, backend)

    def update(r0: int, r1: int) -> torch.Tensor:
        zeros = torch.zeros((r1 - r0, before.shape[1]), device=before.device)
        rows = [LowRank(adapter.b[r0:r1], adapter.a, adapter.scale) for adapter in adapters]
        return ops.merge_low_rank(zeros, rows, out=zeros, backend=backend).weight

    return _nf4(tensor, form, written, before, update if adapters else None, backend)


def _dora(item: Uploaded, operands: Operands, backend: Any) -> Computed | None:
    tensor, form = item.part.tensor, item.part.tensor.form
    before = _values(_weight(item, operands, backend), backend)
    adapter, magnitude = operands.dora(tensor)
    # Float32 first: the report needs the update before its rounding.
    new = ops.merge_dora(before, adapter, magnitude, dtype=torch.float32, backend=backend)

    def update(r0: int, r1: int) -> torch.Tensor:
        return new[r0:r1] - before[r0:r1].float()

    if form is not None:
        written = ops.requantize_nf4(new, blocksize=form.blocksize, nested=form.nested, backend=backend)
        return _nf4(tensor, form, written, before, update, backend)
    stored = new.to(DTYPES[tensor.dtype])
    return _checked(b"", stored, _measure(before, update, stored))


def _weight(item: Uploaded, operands: Operands, backend: Any) -> Any:
    """The weight to merge onto: as stored, or quantized to NF4."""
    tensor = item.part.tensor
    weight = operands.weight(tensor, item.raw)
    if not tensor.through_nf4:
        return weight
    return ops.requantize_nf4(weight, blocksize=QLORA.blocksize, nested=QLORA.nested, backend=backend)


def _nf4(
    tensor: TensorPlan, form: Nf4Form, written: FourBit, before: torch.Tensor, update: Update | None, backend: Any
) -> Computed | None:
    """A weight that is written as NF4. before, update: see `_measure`."""
    measured = _measure(before, update, _values(written, backend))
    if not _trusted(measured):
        return None
    return _checked(nf4_head(tensor, form, _absmax(written)), written.packed, measured)


def _values(weight: Any, backend: Any) -> torch.Tensor:
    """A weight as numbers: as stored, or dequantized to float32."""
    if isinstance(weight, torch.Tensor):
        return weight
    return ops.dequant_blockwise(weight, dtype=torch.float32, backend=backend)


def _measure(before: torch.Tensor, update: Update | None, stored: torch.Tensor) -> _Measured:
    """How much of an update a reader sees, by blocks of rows. before, stored: (rows, columns). update: None if there is
    none."""
    sums = torch.zeros(3, dtype=torch.float64, device=before.device)
    largest = torch.zeros((), dtype=torch.float64, device=before.device)
    step = max(_BLOCK // max(before.shape[1], 1), 1)
    for r0 in range(0, before.shape[0], step):
        r1 = min(r0 + step, before.shape[0])
        realised = (stored[r0:r1].float() - before[r0:r1].float()).double().reshape(-1)
        dw = torch.zeros_like(realised) if update is None else update(r0, r1).double().reshape(-1)
        sums += torch.stack([dw.dot(dw), realised.dot(dw), realised.dot(realised)])
        largest = torch.maximum(largest, dw.abs().max())
    dd, rd, rr, max_delta = torch.cat((sums, largest[None])).tolist()
    # A sum of squares of float32 numbers does not overflow float64.
    lost = not (math.isfinite(dd) and math.isfinite(rr))
    return _Measured(UpdateSums(dd, rd, rr), max_delta, int(lost))


def _trusted(found: Any) -> bool:
    sums = (found.sums.delta_delta, found.sums.realised_delta, found.sums.realised_realised)
    return not found.non_finite and all(map(math.isfinite, sums)) and not 0 < found.max_delta < _SMALLEST


def _checked(head: bytes, body: torch.Tensor, found: Any) -> Computed | None:
    if not _trusted(found):
        return None
    return Computed(head, body.reshape(-1).view(torch.uint8), found.sums, found.max_delta)


def _absmax(written: FourBit) -> PlainAbsmax | NestedAbsmax:
    """The scales that the operation wrote, copied to the host."""
    nested = written.nested
    if nested is None:
        return PlainAbsmax(written.absmax.cpu().numpy())
    codes, scales, values = (part.cpu().numpy() for part in (written.absmax, nested.absmax, nested.values))
    return NestedAbsmax(codes, scales, values, np.float32(nested.offset.item()), nested.blocksize)
