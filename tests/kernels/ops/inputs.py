"""Inputs of kernel tests: the same numbers on every device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lora_kernels.ops import LowRank

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def normal(shape: tuple[int, ...], *, seed: int, dtype: torch.dtype = FP32, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def lora(shape: tuple[int, int], rank: int, *, seed: int, device: torch.device, dtype: torch.dtype = BF16) -> LowRank:
    """Every second adapter is subtracted."""
    b = normal((shape[0], rank), seed=100 + seed, dtype=dtype, scale=0.3).to(device)
    a = normal((rank, shape[1]), seed=200 + seed, dtype=dtype, scale=0.3).to(device)
    return LowRank(b, a, scale=0.75 * (-1) ** seed)


def loras(
    shape: tuple[int, int], ranks: Sequence[int], *, device: torch.device, dtype: torch.dtype = BF16
) -> list[LowRank]:
    return [lora(shape, rank, seed=seed, device=device, dtype=dtype) for seed, rank in enumerate(ranks)]


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in another layout of memory."""
    rows, columns = values.shape
    if layout == "transposed":
        return values.T.contiguous().T
    if layout == "padded":
        return torch.cat((values, values.new_zeros(rows, 24)), dim=1)[:, :columns]
    if layout == "odd":  # an address and a row stride that no wide access can use
        return _odd(values)
    if layout == "stepped":
        wide = values.new_zeros(2 * rows, 3 * columns)
        wide[::2, ::3] = values
        return wide[::2, ::3]
    assert layout == "rows"
    return values.contiguous()


def _odd(values: torch.Tensor) -> torch.Tensor:
    rows, columns = values.shape
    storage = values.new_zeros(1 + rows * (columns + 3))
    view = storage.as_strided((rows, columns), (columns + 3, 1), 1)
    view.copy_(values)
    return view


def bits(tensor: torch.Tensor) -> np.ndarray:
    """Bit patterns, to compare NaN and the signs of zeros too."""
    kind = {2: torch.uint16, 4: torch.uint32}[tensor.element_size()]
    return tensor.contiguous().cpu().view(kind).numpy()


def whole(
    shape: tuple[int, int], ranks: Sequence[int], *, device: torch.device, dtype: torch.dtype = FP32
) -> list[LowRank]:
    """Adapters of small whole numbers, scaled by a power of two: their deltas are exact in float32."""
    adapters = []
    for seed, rank in enumerate(ranks):
        generator = torch.Generator().manual_seed(seed)
        b = torch.randint(-3, 4, (shape[0], rank), generator=generator).to(dtype)
        a = torch.randint(-3, 4, (rank, shape[1]), generator=generator).to(dtype)
        adapters.append(LowRank(b.to(device), a.to(device), scale=0.25 * (-1) ** seed))
    return adapters
