"""Inner loops of a merge in C, if the package was built with a C compiler; otherwise numpy does the same.

Rationale: docs/decisions/0008.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
AddRound = Callable[[memoryview, F32, np.float32, memoryview, npt.NDArray[np.float64]], bool]
Product = Callable[[F32, F32, F32], None]
CopyBytes = Callable[[tuple[int, int], tuple[int, int], int, memoryview], bool]


class MergeRows(Protocol):
    """Copy bfloat16 rows from one file to another with low-rank updates added, `step` rows at a time."""

    def __call__(
        self,
        source: tuple[int, int],
        target: tuple[int, int],
        updates: Sequence[LowRankUpdate],
        step: int,
        columns: int,
        sums: npt.NDArray[np.float64],
    ) -> bool:
        """source, target: file descriptor and offset. updates: at least one, all of the same rows. sums: see
        `add_round_bf16`. Returns False if a file could not be read or written or a value is not finite: the caller must
        redo the rows on the slow path, which raises the precise error; sums are undefined."""


# Columns of a panel, as in product.c.
PANEL: Final = 32

_PATH: Final = Path(__file__).with_name("lora_native.so")
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t


@cache
def add_round_bf16() -> AddRound | None:
    """(weight, product, scale, out, sums) -> finite: out = round(weight + scale * product), once, to nearest even.

    weight, out: bytes of bfloat16 elements, out writable. product: float32, contiguous, as many elements. sums: four
    float64: <dW, dW>, <realised, dW> and <realised, realised> are added to the first three, the last is raised to the
    largest |dW|. False if a value is not finite: out and sums are then undefined. None if the library is missing.
    """
    function = _function("lora_add_round_bf16")
    if function is None:
        return None
    function.argtypes = [_POINTER, _POINTER, ctypes.c_float, _POINTER, _SIZE, _POINTER]
    function.restype = ctypes.c_int

    def call(
        weight: memoryview, product: F32, scale: np.float32, out: memoryview, sums: npt.NDArray[np.float64]
    ) -> bool:
        count = product.size
        if not (
            weight.nbytes == out.nbytes == 2 * count
            and product.flags.c_contiguous
            and product.dtype == np.float32
            and sums.dtype == np.float64
            and sums.size == 4
        ):
            raise ValueError("sizes or dtypes of weight, product, out and sums do not match")
        raw, new = np.frombuffer(weight, np.uint8), np.frombuffer(out, np.uint8)
        return bool(function(_at(raw), _at(product), scale, _at(new), count, _at(sums)))

    return call


@cache
def product() -> Product | None:
    """(left, panels, out): out = left @ right, each element a chain of fused multiply-adds in the order of the rank.

    left: float32 (rows, r), any strides. panels: `panels(right)` of a `right` (r, columns). out: float32 (rows,
    columns), contiguous. None if the library is missing.
    """
    function = _function("lora_product")
    if function is None:
        return None
    stride = ctypes.c_ssize_t
    function.argtypes = [_POINTER, stride, stride, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER]
    function.restype = None

    def call(left: F32, panels: F32, out: F32) -> None:
        (rows, rank), columns = left.shape, out.shape[1]
        if not (
            out.shape[0] == rows
            and panels.shape == (-(-columns // PANEL), rank, PANEL)
            and left.dtype == panels.dtype == out.dtype == np.float32
            and panels.flags.c_contiguous
            and out.flags.c_contiguous
            and out.flags.writeable
        ):
            raise ValueError("shapes or dtypes of left, panels and out do not match")
        row, step = (stride // left.itemsize for stride in left.strides)
        function(_at(left), row, step, _at(panels), rank, rows, columns, _at(out))

    return call


def panels(right: F32) -> F32:
    """Pack (r, columns) as float32 (ceil(columns / PANEL), r, PANEL), the last panel padded with zeros."""
    rank, columns = right.shape
    count = -(-columns // PANEL)
    found = np.zeros((count, rank, PANEL), np.float32)
    whole = columns // PANEL
    found[:whole] = right[:, : whole * PANEL].reshape(rank, whole, PANEL).transpose(1, 0, 2)
    if whole < count:
        found[whole, :, : columns % PANEL] = right[:, whole * PANEL :]
    return found


class LowRankUpdate(NamedTuple):
    """scale * left @ right. left: float32 (rows, r), any strides; panels: `panels(right)`, right (r, columns)."""

    left: F32
    panels: F32
    scale: np.float32


@cache
def merge_rows_bf16() -> MergeRows | None:
    """`MergeRows`; None if the library is missing."""
    function = _function("lora_merge_rows_bf16")
    if function is None:
        return None
    file, place = ctypes.c_int, ctypes.c_int64
    function.argtypes = [file, place, file, place, *[_SIZE] * 3, _POINTER, _SIZE, *[_POINTER] * 5]
    function.restype = ctypes.c_int

    def call(
        source: tuple[int, int],
        target: tuple[int, int],
        updates: Sequence[LowRankUpdate],
        step: int,
        columns: int,
        sums: npt.NDArray[np.float64],
    ) -> bool:
        rows = updates[0].left.shape[0]
        packed = (_Update * len(updates))()
        for place, (left, right, scale) in zip(packed, updates, strict=True):
            if not (
                left.shape[0] == rows
                and right.shape == (-(-columns // PANEL), left.shape[1], PANEL)
                and left.dtype == right.dtype == np.float32
                and right.flags.c_contiguous
            ):
                raise ValueError("shapes or dtypes of the updates do not match")
            row, rank = (stride // left.itemsize for stride in left.strides)
            place.left, place.left_row, place.left_rank = _at(left), row, rank
            place.panels, place.rank, place.scale = _at(right), left.shape[1], scale
        if not (step > 0 and sums.dtype == np.float64 and sums.size == 4):
            raise ValueError("step must be positive and sums four float64")
        buffers = [np.empty(step * columns, kind) for kind in (np.uint16, np.uint16, np.float32, np.float32)]
        return bool(
            function(
                *source, *target, rows, columns, step, ctypes.addressof(packed), len(updates), *map(_at, buffers),
                _at(sums),
            )
        )  # fmt: skip

    return call


@cache
def copy_bytes() -> CopyBytes | None:
    """(source, target, bytes, memory) -> done: copy bytes between files, each a descriptor and an offset, through the
    writable `memory`. False if a file could not be read or written. None if the library is missing."""
    function = _function("lora_copy")
    if function is None:
        return None
    file, place = ctypes.c_int, ctypes.c_int64
    function.argtypes = [file, place, file, place, _SIZE, _POINTER, _SIZE]
    function.restype = ctypes.c_int

    def call(source: tuple[int, int], target: tuple[int, int], count: int, memory: memoryview) -> bool:
        if memory.readonly or not memory.nbytes:
            raise ValueError("memory must be writable and not empty")
        return bool(function(*source, *target, count, _at(np.frombuffer(memory, np.uint8)), memory.nbytes))

    return call


class _Update(ctypes.Structure):
    _fields_: ClassVar = [
        ("left", _POINTER),
        ("left_row", ctypes.c_ssize_t),
        ("left_rank", ctypes.c_ssize_t),
        ("panels", _POINTER),
        ("rank", _SIZE),
        ("scale", ctypes.c_float),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(_PATH))
    except OSError:
        return None


def _function(name: str) -> Any:
    """A function of the library; None if the library is missing, or too old to have it."""
    return getattr(_library(), name, None)


def _at(values: npt.NDArray[Any]) -> int:
    # Several times as fast as `values.ctypes.data`; called for every block.
    address: int = values.__array_interface__["data"][0]
    return address
