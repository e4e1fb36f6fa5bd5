"""The result of a case: as close to float64 as plain torch is, or equal to it in every byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lora_kernels.ops import FourBit
from lora_kernels.ops.testing import assert_close

Into = Callable[[Any, Any], object]
"""Computes an input's result into an output."""


def close(w: Any, out: torch.Tensor, run: Into, reference: Callable[[Any, torch.Tensor, torch.dtype], object]) -> None:
    """reference: takes also the dtype of its products and sums. Raises AssertionError for a wrong result."""
    in_float64, as_torch = torch.empty_like(out, dtype=torch.float64), torch.empty_like(out)
    reference(w, in_float64, torch.float64)
    reference(w, as_torch, torch.float32)
    poison(out)
    run(w, out)
    assert_close(out, in_float64, as_torch=as_torch, factor=2.0)


def equal(w: Any, out: Any, other: Any, run: Into, reference: Into) -> None:
    """out, other: two outputs of one kind. Raises AssertionError unless all bytes are equal."""
    reference(w, other)
    poison(out)
    run(w, out)
    for name, got, expected in zip(
        ("values", "absmax", "nested absmax", "offset"), *map(parts, (out, other)), strict=False
    ):
        different = int((got.view(torch.uint8) != expected.view(torch.uint8)).sum()) if got.numel() else 0
        assert not different, f"{different} of {got.nbytes} bytes of the {name} differ"


def parts(weight: torch.Tensor | FourBit) -> list[torch.Tensor]:
    """The tensors of a weight that a kernel writes."""
    if isinstance(weight, FourBit):
        nested = [] if weight.nested is None else [weight.nested.absmax, weight.nested.offset.reshape(1)]
        return [weight.packed, weight.absmax, *nested]
    return [weight.reshape(-1)]


def poison(weight: torch.Tensor | FourBit) -> None:
    """Fill with bytes that no result has: what is not written shows."""
    for part in parts(weight):
        part.view(torch.uint8).fill_(0xFF)
