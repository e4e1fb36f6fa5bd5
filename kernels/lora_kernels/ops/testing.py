"""How kernels are judged: two numbers against float64, never looser than plain torch, and traps around the outputs.

A kernel's output is compared with the same computation in float64. The bound is what plain torch reaches on the same
inputs in the same types, times a small stated factor, so that no tolerance is guessed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

# The bytes of outputs, and of what surrounds them, before a kernel runs: a NaN in every type, and one that no rounding
# gives.
SENTINEL: Final = 0xFF
GUARD: Final = 64


class Distance(NamedTuple):
    """largest: of |got - exact| / max(|exact|, rms(exact)). rms: rms(got - exact) / rms(exact)."""

    largest: float
    rms: float


def distance(got: torch.Tensor, exact: torch.Tensor) -> Distance:
    """exact: float64, of got's shape. Elements that are not finite must be equal, NaN to NaN, and are then left out."""
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
    """got: of the kernel. exact: in float64. as_torch: of plain torch at the kernel's types. The kernel's distances may
    be `factor` times those of torch, plus `tiny`, one rounding of float32."""
    ours, theirs = distance(got, exact), distance(as_torch, exact)
    limits = Distance(*(factor * bound + tiny for bound in theirs))
    if ours.largest > limits.largest or ours.rms > limits.rms:
        error = (got.detach().cpu().double() - exact.cpu()).abs().nan_to_num(nan=torch.inf).flatten()
        worst = [
            tuple(int(part) for part in torch.unravel_index(index, exact.shape))
            for index in error.topk(min(5, error.numel())).indices
        ]
        raise AssertionError(f"{ours} is beyond {limits}, {factor} times torch's {theirs}; worst elements at {worst}")


class Guarded:
    """An output inside a larger storage full of sentinels.

    tensor: (rows, columns), to be written, poisoned with sentinels too, so that an element that is forgotten shows.
    padding: columns between its rows, which must stay as they are, like the guards before and behind it.
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
        """Raise AssertionError unless everything but the tensor still holds sentinels, and the tensor none."""
        per_element = self._bytes.view(len(self._inside), -1)
        untouched = (per_element == SENTINEL).all(1)
        assert bool(untouched[~self._inside].all()), "written outside of the output"
        assert not bool(untouched[self._inside].any()), "elements of the output were not written"
