"""Weights of one code an element beside their scales: FP8 and int8, per tensor, channel, group or block.

Scales lie in a grid over the last two dimensions; those before (experts) repeat it. A stored scale multiplies, also
where its name is `weight_scale_inv`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from lora_contract.base import BaseTensor
from lora_kernels.quantized.layout import Codes, Grid, Quantized, Scale
from lora_kernels.quantized.parts import QuantizedBase, as_part, reject, show, unread

FLOATS: Final[dict[str, Codes]] = {"F8_E4M3": "e4m3", "F8_E5M2": "e5m2"}
_SCALES: Final[dict[str, Scale]] = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F8_E8M0": "E8M0", "U8": "E8M0"}
# After the path of a module, then after the name of a parameter of fused experts.
_LEAVES: Final = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
_SUFFIXES: Final = ("_scale_inv", "_scale")

Cell = tuple[int, int]


def read_fp8(known: QuantizedBase, cells: Sequence[Cell] = (), *, strict: bool = True) -> dict[str, Quantized]:
    """All FP8 tensors with their scales. cells: rows and columns of a block by the config, if it says. strict: all FP8
    tensors must have scales.

    Raises RegistryError `rejected` for a tensor without scales, or with scales that do not fit.
    """
    if any(known.config.get(key) in ("fp4", "mxfp4") for key in ("expert_dtype", "experts_dtype")):
        unread("its experts are stored in 4 bits (FP4) beside FP8")
    sizes = known.config.get("weight_block_size")
    if isinstance(sizes, list) and len(sizes) == 2 and all(type(size) is int and size > 0 for size in sizes):  # noqa: PLR2004
        cells = [(sizes[0], sizes[1]), *cells]
    found = {}
    for name, tensor in known.tensors.items():
        if tensor.dtype in FLOATS and len(tensor.shape) > 1 and not is_scale(name):
            scales = _scales_of(known, name)
            if scales is None and not strict:
                continue
            if scales is None:
                reject(name, f"holds {tensor.dtype} codes, but has no scales")
            grid = grid_of(name, tensor.shape, scales, codes=FLOATS[tensor.dtype], cells=cells)
            found[name] = Quantized(
                scheme="fp8",
                shape=tensor.shape,
                dtype=known.dtype(scales.dtype),
                packed=as_part(tensor),
                absmax=as_part(scales),
                grid=grid,
            )
    return found


def is_scale(name: str) -> bool:
    """Whether a tensor holds scales, by its name. Those of NVFP4 are FP8 themselves."""
    return name.rpartition(".")[2].endswith(("scale", "scale_inv", "scales", "scale_2", "qscale_weight"))


def _scales_of(known: QuantizedBase, name: str) -> BaseTensor | None:
    path, _, leaf = name.rpartition(".")
    names = [f"{path}.{end}" for end in _LEAVES] if leaf == "weight" else [f"{name}{end}" for end in _SUFFIXES]
    return next((known.tensors[scales] for scales in names if scales in known.tensors), None)


def grid_of(
    name: str,
    shape: tuple[int, ...],
    scales: BaseTensor,
    *,
    codes: Codes,
    bits: int = 8,
    cells: Iterable[Cell] = (),
    scale: Scale | None = None,
) -> Grid:
    """The grid of scales over a weight of `shape`.

    Args:
        cells: sizes of a cell that the config allows. A grid that fits none of them must divide the weight evenly.
        scale: dtype of the scales; None to take it from the tensor.

    Raises RegistryError `rejected` for scales that fit in no way, or have another dtype.
    """
    kind = scale or _SCALES.get(scales.dtype)
    if kind is None:
        reject(name, f"has {scales.name} of dtype {scales.dtype}; expected {', '.join(_SCALES)}")
    if len(shape) < 2:  # noqa: PLR2004
        reject(name, f"has codes of the shape {show(shape)}; expected a matrix")
    rows, columns = shape[-2:]
    count = math.prod(shape[:-2])
    if math.prod(scales.shape) == 1:
        return Grid(codes, bits, (rows, columns), (1, 1), kind)
    high, wide = _grid_shape(name, shape, scales)
    fitting = (
        (height, width)
        for height, width in (*cells, _even(rows, columns, high, wide))
        if height and width and (-(-rows // height), -(-columns // width)) == (high, wide)
    )
    cell = next(fitting, None)
    if cell is None:
        reject(name, f"has {show(scales.shape)} scales for a weight of {show(shape)}")
    return Grid(codes, bits, cell, (count * high, wide), kind)


def _grid_shape(name: str, shape: tuple[int, ...], scales: BaseTensor) -> tuple[int, int]:
    """Rows and columns of the grid over one matrix."""
    given, leading = scales.shape, shape[:-2]
    if given == leading and leading:
        return 1, 1
    if given == shape[:-1]:
        return given[-1], 1
    if len(given) != len(shape) or given[:-2] != leading:
        reject(name, f"has {show(given)} scales for a weight of {show(shape)}")
    return given[-2], given[-1]


def _even(rows: int, columns: int, high: int, wide: int) -> Cell:
    """The cell of a grid that divides a matrix evenly; (0, 0) if it does not."""
    return (rows // high, columns // wide) if high and wide and not rows % high and not columns % wide else (0, 0)
