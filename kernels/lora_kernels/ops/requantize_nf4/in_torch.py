"""Merging and quantizing to NF4 in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.ops.low_rank import LowRank, delta_sum
from lora_kernels.ops.quantized import FourBit, Nested, Quantized
from lora_kernels.ops.quantized.in_torch import dequantize
from lora_kernels.ops.requantize_nf4.mean import mean
from lora_kernels.quantized.blockwise import SMALLEST
from lora_kernels.quantized.codes import NF4_BOUNDS


def requantize(
    weight: torch.Tensor | Quantized,
    adapters: Sequence[LowRank],
    out: FourBit,
    *,
    compute: torch.dtype = torch.float32,
) -> None:
    """Merge and quantize checked arguments into `out`. compute: dtype of the merge, whose sum is rounded to float32."""
    w = weight.to(compute) if isinstance(weight, torch.Tensor) else dequantize(weight, compute)
    flat = (w + delta_sum(w, adapters, compute)).float().reshape(-1)
    smallest = torch.tensor(float(SMALLEST), device=flat.device)
    blocks = _in_rows(flat, out.blocksize)
    absmax = blocks.abs().amax(dim=1)
    whole = flat.numel() // out.blocksize
    absmax[whole:] = absmax[whole:].maximum(smallest)
    divisor = torch.where(absmax < smallest, smallest, absmax)[:, None]
    scaled = torch.cat((blocks[:whole] * (1 / divisor[:whole]), blocks[whole:] / divisor[whole:])).reshape(-1)
    codes = torch.bucketize(scaled[: flat.numel()], torch.from_numpy(NF4_BOUNDS).to(flat.device)).to(torch.uint8)
    zero = codes.new_full((codes.numel() % 2,), 7)
    high, low = torch.cat((codes, zero)).reshape(-1, 2).unbind(1)
    out.packed.reshape(-1).copy_((high << 4) | low)
    if out.nested is None:
        out.absmax.copy_(absmax)
    else:
        _compress(absmax, out.absmax, out.nested)


def _compress(absmax: torch.Tensor, codes: torch.Tensor, nested: Nested) -> None:
    """Double quantization into codes, nested.absmax and nested.offset."""
    nested.offset.copy_(mean(absmax))
    blocks = _in_rows(absmax - nested.offset, nested.blocksize)
    largest = blocks.abs().amax(dim=1)
    nested.absmax.copy_(largest)
    scaled = (blocks / torch.where(largest > 0, largest, 1)[:, None]).reshape(-1)[: absmax.numel()]
    below = (torch.searchsorted(nested.values, scaled, right=True) - 1).clamp(min=0)
    above = (below + 1).clamp(max=255)
    nearer = (scaled - nested.values[above]).abs() < (scaled - nested.values[below]).abs()
    codes.copy_(torch.where(nearer, above, below))


def _in_rows(flat: torch.Tensor, size: int) -> torch.Tensor:
    """One block per row, the last padded with zeros."""
    return torch.nn.functional.pad(flat, (0, -flat.numel() % size)).reshape(-1, size)
