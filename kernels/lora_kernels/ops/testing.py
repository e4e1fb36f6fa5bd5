"""Checks of kernels: two error measures against float64, bounded by those of plain torch, and guards around outputs.

A kernel's output is compared with the same computation in float64. The bound is the error of plain torch on the same
inputs with the same dtypes, times a small stated factor, so that no tolerance is guessed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

# The bytes of outputs and guards before a kernel runs: NaN in every dtype, with bits that no rounding produces.
SENTINEL: Final = 0xFF
GUARD: Final = 64


class Distance(NamedTuple):
    """largest: of |got - exact| / max(|exact|, rms(exact)). rms: rms(got - exact) / rms(exact)."""

    largest: float
    rms: float


def distance(got: torch.Tensor, exact: torch.Tensor) -> Distance:
    """The distance of `got` from `exact`, float64 of the same shape. Elements that are not finite must be equal (NaN to
    NaN), and are then ignored."""
    assert got.shape == exact.shape, (got.shape, exact.shape)
    got, exact = got.detach().to(exact.device).double(), exact.detach()
    lost = ~exact.isfinite()
    assert torch.equal(got[lost].nan_to_num(nan=0.5), exact[lost].nan_to_num(nan=0.5)), "non-finite elements differ"
    got, exact = got[~lost], exact[~lost]
    if not exact.numel():
        return Distance(0.0, 0.0)
    error = (got - exact).abs()
    size = float(exact.square().mean().sqrt())
    floor = torch.finfo(torch.float64).tiny
    return Distance(
        largest=float((error / exact.abs().clamp(min=max(size, floor))).nan_to_num(nan=torch.inf).max()),
        rms=float(error.square().mean().sqrt()) / max(size, floor),
    )


def assert_close(
    got: torch.Tensor, exact: torch.Tensor, *, as_torch: torch.Tensor, factor: float = 1.0, tiny: float = 2.0**-24
) -> None:
    """Raise AssertionError unless the kernel's distances are at most `factor` times those of torch, plus `tiny`, one
    float32 rounding. got: of the kernel. exact: in float64. as_torch: of plain torch with the kernel's dtypes."""
    ours, theirs = distance(got, exact), distance(as_torch, exact)
    limits = Distance(*(factor * bound + tiny for bound in theirs))
    if ours.largest > limits.largest or ours.rms > limits.rms:
        error = (got.detach().cpu().double() - exact.cpu()).abs().nan_to_num(nan=torch.inf).flatten()
        worst = [
            tuple(int(part) for part in torch.unravel_index(index, exact.shape))
            for index in error.topk(min(5, error.numel())).indices
        ]
        raise AssertionError(f"{ours} exceeds {limits}, {factor} times torch's {theirs}; worst elements at {worst}")


class Guarded:
    """An output within a larger storage that is filled with sentinels.

    tensor: the output (rows, columns), also filled with sentinels, to detect elements that are not written. padding:
    columns between its rows, which must not change, like the guards before and after it.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        *,
        padding: int = 0,
        transposed: bool = False,
    ) -> None:
        rows, columns = shape[::-1] if transposed else shape
        width = columns + padding
        size = torch.empty(0, dtype=dtype).element_size()
        self._bytes = torch.full(((2 * GUARD + rows * width) * size,), SENTINEL, dtype=torch.uint8, device=device)
        flat = self._bytes.view(dtype)
        inner = flat.as_strided((rows, columns), (width, 1), GUARD)
        self.tensor = inner.T if transposed else inner
        self._inside = torch.zeros(len(flat), dtype=torch.bool, device=device)
        self._inside.as_strided((rows, columns), (width, 1), GUARD).fill_(True)

    def check(self) -> None:
        """Raise AssertionError if a sentinel outside the tensor changed, or one inside it did not."""
        per_element = self._bytes.view(len(self._inside), -1)
        untouched = (per_element == SENTINEL).all(1)
        assert bool(untouched[~self._inside].all()), "written outside the output"
        assert not bool(untouched[self._inside].any()), "elements of the output were not written"
