"""Weights of compressed-tensors (llm-compressor): packed integers, plain integers, FP8 and 4-bit floats.

Formats pack-quantized, int-quantized, float-quantized, naive-quantized, nvfp4-pack-quantized, mxfp4-pack-quantized and
mxfp8-quantized, also mixed. What a weight is follows from its own tensors; the config's groups say what may be.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from lora_contract.base import BaseTensor
from lora_contract.tensors import MAX_ELEMENTS
from lora_kernels.quantized.layout import Codes, Quantized, StoredPart
from lora_kernels.quantized.parts import QuantizedBase, as_part, reject, show, unread
from lora_kernels.quantized.scaled import Cell, grid_of, read_fp8

_READ: Final = frozenset(
    {
        *("dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"),
        *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
    }
)
_WORD: Final = 32
_BYTE: Final = 8
_OF_WORDS: Final = ("I32", "U32")
_HALF: Final = 4
_DIMENSIONS: Final = 2


def read_compressed(known: QuantizedBase) -> dict[str, Quantized]:
    """Raises RegistryError `unsupported` for sparse and rotated checkpoints and formats not listed above, `rejected`
    for damaged weights."""
    _refuse_others(known)
    cells = list(_cells(known.config))
    found = read_fp8(known, cells)
    for name, tensor in known.tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "weight_packed" and tensor.dtype == "U8":
            found[f"{path}.weight"] = _floats(known, path, tensor)
        elif leaf == "weight_packed":
            found[f"{path}.weight"] = _packed(known, path, tensor, cells)
        elif leaf == "weight" and tensor.dtype == "I8" and f"{path}.weight_scale" in known.tensors:
            found[name] = _integers(known, path, tensor, cells)
    return found


def _refuse_others(known: QuantizedBase) -> None:
    config = known.config
    sparse = config.get("sparsity_config")
    sparse = sparse.get("format") if isinstance(sparse, dict) else None
    if sparse not in (None, "dense"):
        unread(f"its weights are also sparse ({str(sparse)[:40]})")
    formats = [config.get("format"), *(group.get("format") for group in _groups(config))]
    other = next((str(one) for one in formats if one is not None and str(one) not in _READ), None)
    if other is not None:
        unread(f"its weights have the format {other[:40]!r} of compressed-tensors")
    transforms = config.get("transform_config")
    if isinstance(transforms, dict) and transforms.get("config_groups"):
        unread("its activations are rotated while it runs (transform_config); a plain model has no place for that")


def _groups(config: dict[str, Any]) -> list[dict[str, Any]]:
    groups = config.get("config_groups")
    return [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []


def _weights(config: dict[str, Any], kind: str | None = None) -> Iterator[dict[str, Any]]:
    """How the config's groups quantize weights. kind: only to numbers of this type."""
    for group in _groups(config):
        weights = group.get("weights")
        if isinstance(weights, dict) and kind in (None, weights.get("type", "int")):
            yield weights


def _cells(config: dict[str, Any]) -> Iterator[Cell]:
    for weights in _weights(config):
        size, block = weights.get("group_size"), weights.get("block_structure")
        if isinstance(block, list) and len(block) == _DIMENSIONS and all(type(side) is int for side in block):
            yield block[0], block[1]
        elif type(size) is int and size > 0:
            yield 1, size


def _packed(known: QuantizedBase, path: str, codes: BaseTensor, cells: list[Cell]) -> Quantized:
    """Integers of 1 to 8 bits, packed along the inputs."""
    name = f"{path}.weight"
    shape = _shape(known, path)
    if codes.dtype not in _OF_WORDS or len(shape) != len(codes.shape) or shape[:-1] != codes.shape[:-1]:
        reject(name, f"has {show(codes.shape)} words of {codes.dtype} for a weight of {show(shape)}; expected I32")
    bits, stored = _bits(known, name, shape[-1], codes.shape[-1])
    scales = _tensor(known, path, "weight_scale")
    grid = grid_of(name, shape, scales, codes=stored, bits=bits, cells=cells)
    zeros, order = known.tensors.get(f"{path}.weight_zero_point"), known.tensors.get(f"{path}.weight_g_idx")
    middle = 1 << (bits - 1)
    zero, part, form = middle, None, "int8"
    if zeros is not None and zeros.dtype in _OF_WORDS and stored == "bits":
        # Packed with the same middle added, which cancels out.
        rows = -(-grid.shape[0] * bits // _WORD)
        zero, form = 0, "down"
        part = known.part(name, zeros.name, dtypes=_OF_WORDS, shape=(rows, grid.shape[1]))
    elif zeros is not None:
        part = known.part(name, zeros.name, dtypes=("I8",), count=math.prod(grid.shape))
    return Quantized(
        scheme=f"compressed-tensors of {bits} bits",
        shape=shape,
        dtype=known.dtype(scales.dtype),
        packed=as_part(codes),
        absmax=as_part(scales),
        others=(f"{path}.weight_shape",),
        grid=msgspec.structs.replace(
            grid, zero=zero, zeros=part, zero_codes=form, order=_order(known, name, order, shape[-1])
        ),
    )


def _integers(known: QuantizedBase, path: str, codes: BaseTensor, cells: list[Cell]) -> Quantized:
    """Integers of up to 8 bits, one a byte."""
    name = f"{path}.weight"
    scales = _tensor(known, path, "weight_scale")
    grid = grid_of(name, codes.shape, scales, codes="int8", cells=cells)
    zeros, order = known.tensors.get(f"{path}.weight_zero_point"), known.tensors.get(f"{path}.weight_g_idx")
    part = None
    if zeros is not None:
        part = known.part(name, zeros.name, dtypes=("I8",), count=math.prod(grid.shape))
    return Quantized(
        scheme="compressed-tensors int8",
        shape=codes.shape,
        dtype=known.dtype(scales.dtype),
        packed=as_part(codes),
        absmax=as_part(scales),
        grid=msgspec.structs.replace(grid, zeros=part, order=_order(known, name, order, codes.shape[-1])),
    )


def _floats(known: QuantizedBase, path: str, codes: BaseTensor) -> Quantized:
    """Floats of 4 bits, two a byte: NVFP4 with FP8 scales and one scale of all, MXFP4 with powers of two."""
    name = f"{path}.weight"
    if any(weights.get("num_bits") not in (_HALF, _BYTE) for weights in _weights(known.config, "float")):
        unread(f"{codes.name} holds floats of other than 4 bits")
    scales = _tensor(known, path, "weight_scale")
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    factor = known.tensors.get(f"{path}.weight_global_scale")
    return floats(known, name, shape, codes, scales, factor, divided=True)


def floats(
    known: QuantizedBase,
    name: str,
    shape: tuple[int, ...],
    codes: BaseTensor,
    scales: BaseTensor,
    factor: BaseTensor | None,
    *,
    divided: bool,
) -> Quantized:
    """A weight of 4-bit floats. factor: of all scales, if they are FP8. divided: whether they are divided by it."""
    eight = scales.dtype == "F8_E4M3"
    if eight != (factor is not None) or not (eight or scales.dtype in ("U8", "F8_E8M0")):
        reject(name, f"has {scales.name} of dtype {scales.dtype}; expected FP8 with a global scale, or powers of two")
    grid = grid_of(name, shape, scales, codes="e2m1", bits=_HALF, scale="E4M3" if eight else "E8M0")
    part = known.part(name, factor.name, count=1) if factor is not None else None
    return Quantized(
        scheme="nvfp4" if eight else "mxfp4",
        shape=shape,
        dtype=known.dtype(scales.dtype),
        packed=as_part(codes),
        absmax=as_part(scales),
        grid=msgspec.structs.replace(grid, factor=part, divided=divided),
    )


def _tensor(known: QuantizedBase, path: str, leaf: str) -> BaseTensor:
    found = known.tensors.get(f"{path}.{leaf}")
    if found is None:
        reject(f"{path}.weight", f"has no {path}.{leaf}")
    return found


def _shape(known: QuantizedBase, path: str) -> tuple[int, ...]:
    """The shape before packing, which a tensor of its own holds."""
    stored = _tensor(known, path, "weight_shape")
    size = {"I64": "q", "I32": "i"}.get(stored.dtype)
    count = math.prod(stored.shape)
    if size is None or not 2 <= count <= _BYTE:  # noqa: PLR2004
        reject(f"{path}.weight", f"has {stored.name} of {stored.dtype} with {count} numbers; expected the sizes as I64")
    raw = known.read(stored.file, stored.start, stored.end - stored.start)
    shape = struct.unpack(f"<{count}{size}", raw)
    if not all(1 <= side <= MAX_ELEMENTS for side in shape) or math.prod(shape) > MAX_ELEMENTS:
        reject(f"{path}.weight", f"has {stored.name} with the sizes {show(shape)[:80]}")
    return shape


def _bits(known: QuantizedBase, name: str, columns: int, words: int) -> tuple[int, Codes]:
    """Bits of a code and how they are packed: densely, or (before 0.13) as many whole codes as fit in a word."""
    sizes = [weights.get("num_bits") for weights in _weights(known.config, "int")]
    allowed = sorted({size for size in sizes if type(size) is int and 1 <= size <= _BYTE}) or [4, 8]
    found: set[tuple[int, Codes]] = set()
    for bits in allowed:
        if -(-columns * bits // _WORD) == words:
            found.add((bits, "bits"))
        if _WORD % bits and -(-columns // (_WORD // bits)) == words:
            found.add((bits, "words"))
    if len(found) != 1:
        reject(
            name,
            f"has {words} words for {columns} codes a row, which is {'ambiguous' if found else 'wrong'} at "
            f"{' or '.join(map(str, allowed))} bits",
        )
    return found.pop()


def _order(known: QuantizedBase, name: str, order: BaseTensor | None, columns: int) -> StoredPart | None:
    return known.part(name, order.name, dtypes=_OF_WORDS, shape=(columns,)) if order is not None else None
