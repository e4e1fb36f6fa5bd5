"""Match of tensor shapes against symbolic shapes: `out`, `in`, `r`, `2r`, `*`, and letters that must agree."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lora_contract.adapter.slots import Shape
from lora_contract.modules import BaseModule


class ShapeFault(msgspec.Struct, frozen=True):
    """A mismatch. expected: the shape. rank_only: only the rank differs."""

    expected: str
    rank_only: bool


def shape_fault(
    shape: tuple[int, ...], allowed: Sequence[Shape], module: BaseModule, rank: int, bound: dict[str, int]
) -> ShapeFault | None:
    """Compare a shape with the allowed ones; None if it matches. bound: values of the letters in this module so far,
    which a match extends."""
    sizes: dict[str, int | None] = {"out": module.out, "in": module.in_, "r": rank, "2r": 2 * rank, "*": None}
    for symbols in allowed:
        letters = dict(bound)
        if len(shape) == len(symbols) and all(
            _agrees(size, symbol, sizes, letters) for size, symbol in zip(shape, symbols, strict=True)
        ):
            bound.update(letters)
            return None
    without_rank = {**sizes, "r": None, "2r": None, "k": None}
    rank_only = any(
        len(shape) == len(symbols)
        and not {"r", "2r", "k"}.isdisjoint(symbols)
        and all(_agrees(size, symbol, without_rank, dict(bound)) for size, symbol in zip(shape, symbols, strict=True))
        for symbols in allowed
    )
    shown = " or ".join(_show(symbols, {**sizes, **bound}) for symbols in allowed[:2])
    return ShapeFault(expected=shown, rank_only=rank_only)


def _agrees(size: int, symbol: str | int, sizes: dict[str, int | None], letters: dict[str, int]) -> bool:
    if isinstance(symbol, int):
        return size == symbol
    if symbol in sizes:
        known = sizes[symbol]
        return known is None or size == known
    return letters.setdefault(symbol, size) == size


def _show(symbols: Shape, sizes: dict[str, int | None]) -> str:
    parts = []
    for symbol in symbols:
        known = symbol if isinstance(symbol, int) else sizes.get(symbol)
        parts.append(str(symbol) if known is None else str(known))
    return f"[{', '.join(parts)}]"
