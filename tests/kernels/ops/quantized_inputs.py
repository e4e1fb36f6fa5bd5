"""Quantized weights for kernel tests, what the numpy codecs make of them, and NF4 outputs between sentinels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lora_kernels.ops import FourBit, Int8Rows, Nested, empty_nf4
from lora_kernels.ops.dispatch import interpreted
from lora_kernels.ops.quantized import Quantized
from lora_kernels.ops.testing import GUARD
from lora_kernels.quantized import absmax, blockwise, int8
from lora_kernels.quantized.codes import CODEBOOKS, dynamic_map
from tests.kernels.ops.inputs import normal

Shape = tuple[int, int]


def four_bit(
    shape: Shape, device: torch.device, *, kind: str = "nf4", blocksize: int = 64, nested: bool = True, seed: int = 0
) -> FourBit:
    """Random bytes, every one of them where there are enough."""
    random = np.random.default_rng(seed)
    count = shape[0] * shape[1]
    blocks = -(-count // blocksize)
    double = None
    scale = torch.from_numpy(random.uniform(0.01, 0.1, blocks).astype(np.float32))
    if nested:
        double = Nested(
            absmax=torch.from_numpy(random.uniform(0.01, 0.1, -(-blocks // 256)).astype(np.float32)).to(device),
            values=torch.from_numpy(dynamic_map()).to(device),
            offset=torch.tensor(0.0521, device=device),
        )
        scale = torch.from_numpy(random.integers(0, 256, blocks, dtype=np.uint8))
    return FourBit(
        packed=torch.from_numpy(random.integers(0, 256, -(-count // 2), dtype=np.uint8)).to(device),
        absmax=scale.to(device),
        values=torch.from_numpy(CODEBOOKS[kind].values).to(device),
        shape=shape,
        blocksize=blocksize,
        nested=double,
    )


def int8_rows(shape: Shape, device: torch.device) -> Int8Rows:
    codes = np.random.default_rng(1).integers(-128, 128, shape, dtype=np.int8)
    return Int8Rows(torch.from_numpy(codes).to(device), normal((shape[0],), seed=2).abs().to(device))


def decoded(weight: Quantized, *, kind: str = "nf4") -> torch.Tensor:
    """As the numpy codecs read it, which have the bits of bitsandbytes."""
    out = np.empty(tuple(weight.shape), np.float32)
    if isinstance(weight, Int8Rows):
        int8.dequantize(weight.codes.cpu().numpy(), weight.scb.cpu().numpy(), out)
    else:
        scales = scales_of(weight).of(0, weight.blocks)
        packed = weight.packed.reshape(-1).cpu().numpy()
        blockwise.dequantize(packed, scales, CODEBOOKS[kind], weight.blocksize, 0, out)
    return torch.from_numpy(out)


def scales_of(weight: FourBit) -> absmax.Absmax:
    if weight.nested is None:
        return absmax.PlainAbsmax(weight.absmax.cpu().numpy())
    nested = weight.nested
    return absmax.NestedAbsmax(
        weight.absmax.cpu().numpy(),
        nested.absmax.cpu().numpy(),
        nested.values.cpu().numpy(),
        np.float32(nested.offset.item()),
        nested.blocksize,
    )


def encoded(values: torch.Tensor, blocksize: int, *, nested: bool) -> list[np.ndarray]:
    """Packed codes and scales as the numpy codecs write float32 `values`, in the order of `written`."""
    flat = values.cpu().numpy().reshape(-1)
    scratch, codes = np.empty_like(flat), np.empty(flat.size, np.uint8)
    found = blockwise.largest(flat, blocksize, scratch)
    blockwise.quantize_nf4(flat, found, blocksize, codes, scratch)
    packed = blockwise.pack_nf4(codes, np.empty(-(-flat.size // 2), np.uint8))
    if not nested:
        return [packed, found]
    double = absmax.compress(found)
    return [packed, double.codes, double.nested, np.array(double.offset)]


def written(weight: FourBit) -> list[np.ndarray]:
    """What of an NF4 weight is computed."""
    parts = [weight.packed, weight.absmax]
    if weight.nested is not None:
        parts += [weight.nested.absmax, weight.nested.offset]
    return [part.cpu().numpy() for part in parts]


def assert_same(got: FourBit, expected: list[np.ndarray]) -> None:
    found = written(got)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


class GuardedNf4:
    """An NF4 output each of whose parts lies inside a larger storage full of `poison`. Any byte may be a code: what was
    forgotten shows when outputs with different poisons differ."""

    def __init__(self, shape: Shape, device: torch.device, *, blocksize: int, nested: bool, poison: int) -> None:
        self._poison = poison
        self._storages: list[torch.Tensor] = []
        plain = empty_nf4(shape, blocksize=blocksize, nested=nested, device=device)
        double = plain.nested
        if double is not None:
            double = Nested(self._inside(double.absmax), double.values, self._inside(double.offset))
        self.weight = FourBit(
            self._inside(plain.packed), self._inside(plain.absmax), plain.values, shape, blocksize, double
        )

    def _inside(self, like: torch.Tensor) -> torch.Tensor:
        storage = torch.full((2 * GUARD + like.nbytes,), self._poison, dtype=torch.uint8, device=like.device)
        self._storages.append(storage)
        return storage[GUARD : GUARD + like.nbytes].view(like.dtype).reshape(like.shape)

    def check(self) -> None:
        for storage in self._storages:
            outside = torch.cat((storage[:GUARD], storage[-GUARD:]))
            assert bool((outside == self._poison).all()), "written outside of the output"


def ending_with(end: Quantized, rows: int) -> Quantized:
    """A weight of so many rows of 64, of which the last 64 are those of `end`."""

    def grown(part: torch.Tensor, count: int) -> torch.Tensor:
        found = torch.empty((count, *part.shape[1:]), dtype=part.dtype, device=part.device)
        found[-len(part) :] = part
        return found

    if isinstance(end, Int8Rows):
        return Int8Rows(grown(end.codes, rows), grown(end.scb, rows))
    return replace(end, packed=grown(end.packed, rows * 32), absmax=grown(end.absmax, rows), shape=(rows, 64))


class LastPrograms:
    """A kernel of which, in the interpreter, only the last programs of a launch run: those of 64 rows of 64."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        self._kernel, self._monkeypatch, self.launched = getattr(module, name), monkeypatch, False
        monkeypatch.setattr(module, name, self)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.launched = True
        if not interpreted():
            return self._kernel[grid]
        from triton.runtime.interpreter import interpreter_builder as builder

        few = min(grid[0], 4)
        place = builder.set_grid_idx
        self._monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: place(x + grid[0] - few, y, z))
        self._monkeypatch.setattr(builder, "set_grid_dim", lambda *_: setattr(builder, "grid_dim", (*grid, 1, 1)[:3]))
        return self._kernel[(few, *grid[1:])]
