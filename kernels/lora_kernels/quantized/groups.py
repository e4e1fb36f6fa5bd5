"""Weights of bitsandbytes: their tensors, found and validated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from lora_contract import canonical
from lora_contract.adapter.files import ReadFile
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.tensors import DTYPE_NAMES, MAX_ELEMENTS
from lora_kernels.quantized.blocksizes import BLOCKSIZES
from lora_kernels.quantized.layout import NestedParts, Quantized, StoredPart
from lora_kernels.quantized.parts import as_part, reject

_STATE: Final = ".quant_state.bitsandbytes__"
_PARTS: Final = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_MAX_STATE: Final = 4096
_MAX_DIMENSIONS: Final = 8


def read_bitsandbytes(base: BaseFingerprint, read: ReadFile) -> dict[str, Quantized]:
    """The weights of the base that are stored in a format of bitsandbytes, by name. Empty for other bases.

    Reads only the JSON of a few hundred bytes of each weight. Raises RegistryError `rejected` for weights with missing
    or inconsistent parts.
    """
    tensors = base.by_name()
    found: dict[str, Quantized] = {}
    for name, tensor in tensors.items():
        weight, state, scheme = name.partition(_STATE)
        if state:
            if weight in found:
                reject(weight, "has two quant_state tensors")
            found[weight] = _four_bit(weight, scheme, tensor, tensors, read)
        elif name.endswith(".SCB"):
            weight = f"{name.removesuffix('.SCB')}.weight"
            found[weight] = _int8(weight, tensor, tensors, read, base.config)
    used = frozenset().union(*(group.names for group in found.values()))
    _refuse_orphans(base, used, quantized=bool(found))
    return found


def _four_bit(
    name: str, scheme: str, state: BaseTensor, tensors: Mapping[str, BaseTensor], read: ReadFile
) -> Quantized:
    if scheme not in ("nf4", "fp4"):
        reject(name, f"is quantized as {scheme[:40]!r}; expected nf4 or fp4")
    if state.dtype != "U8" or not 2 <= state.end - state.start <= _MAX_STATE:
        reject(name, f"has a quant_state of {state.end - state.start} bytes of {state.dtype}; expected JSON in U8")
    raw = read(state.file, state.start, state.end - state.start)
    facts = canonical.loads_strict(raw, what=state.name, max_bytes=_MAX_STATE, max_depth=3)
    if not isinstance(facts, dict):
        reject(name, "has a quant_state that is not a JSON object")
    if facts.get("quant_type") != scheme:
        reject(name, f"has a quant_state of {scheme} with quant_type {str(facts.get('quant_type'))[:40]!r}")
    shape = _shape(name, facts.get("shape"))
    blocksize = _blocksize(name, facts.get("blocksize"))
    count = math.prod(shape)
    blocks = -(-count // blocksize)
    nested = None
    if f"{name}.nested_absmax" in tensors or "nested_offset" in facts:
        nested = _nested(name, facts, blocks, tensors)
    return Quantized(
        scheme=scheme,
        shape=shape,
        dtype=_dtype(name, facts.get("dtype")),
        packed=_part(name, name, tensors, dtypes=("U8", "BF16", "F16", "F32"), size=-(-count // 2)),
        absmax=_part(name, f"{name}.absmax", tensors, dtypes=("U8",) if nested else ("F32",), count=blocks),
        blocksize=blocksize,
        values=_part(name, f"{name}.quant_map", tensors, count=16),
        nested=nested,
        others=(state.name,),
    )


def _nested(name: str, facts: Mapping[str, Any], blocks: int, tensors: Mapping[str, BaseTensor]) -> NestedParts:
    blocksize = _blocksize(name, facts.get("nested_blocksize"))
    if facts.get("nested_dtype") != "float32":
        reject(name, f"has a nested_dtype of {str(facts.get('nested_dtype'))[:40]!r}; expected float32")
    offset = facts.get("nested_offset")
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not abs(offset) <= 3.4e38:  # noqa: PLR2004
        reject(name, f"has a nested_offset of {str(offset)[:40]!r}; expected a number")
    return NestedParts(
        absmax=_part(name, f"{name}.nested_absmax", tensors, count=-(-blocks // blocksize)),
        values=_part(name, f"{name}.nested_quant_map", tensors, count=256),
        blocksize=blocksize,
        offset=float(offset),
    )


def _int8(
    name: str, scale: BaseTensor, tensors: Mapping[str, BaseTensor], read: ReadFile, config: Mapping[str, Any]
) -> Quantized:
    weight = tensors.get(name)
    if weight is None or weight.dtype != "I8" or len(weight.shape) != 2:
        reject(name, f"is not an I8 matrix, although the base has {scale.name}")
    others = []
    layout = tensors.get(f"{name}_format")
    if layout is not None:
        others.append(layout.name)
        if layout.end - layout.start != 1 or read(layout.file, layout.start, 1) != b"\0":
            reject(name, f"is not stored row by row according to {layout.name}")
    configured = config.get("dtype", config.get("torch_dtype"))
    return Quantized(
        scheme="int8",
        shape=weight.shape,
        # bitsandbytes converts weights to float16 before it quantizes them.
        dtype=DTYPE_NAMES.get(configured, "F16") if isinstance(configured, str) else "F16",
        packed=as_part(weight),
        absmax=_part(name, scale.name, tensors, count=weight.shape[0]),
        others=tuple(others),
    )


def _refuse_orphans(base: BaseFingerprint, used: frozenset[str], *, quantized: bool) -> None:
    config = base.config.get("quantization_config")
    ours = quantized or (isinstance(config, dict) and config.get("quant_method") == "bitsandbytes")
    names = {tensor.name for tensor in base.tensors}
    for tensor in base.tensors:
        if tensor.name in used:
            continue
        for suffix in _PARTS:
            owner = tensor.name.removesuffix(suffix)
            if owner != tensor.name and owner in names:
                reject(owner, f"has {tensor.name}, but no quant_state")
        if ours and tensor.dtype in ("U8", "I8") and tensor.name.endswith(".weight"):
            reject(
                tensor.name,
                f"has {tensor.dtype} codes, but no {'SCB' if tensor.dtype == 'I8' else 'quant_state'}",
            )


def _part(
    owner: str,
    name: str,
    tensors: Mapping[str, BaseTensor],
    *,
    dtypes: tuple[str, ...] = ("F32",),
    count: int | None = None,
    size: int | None = None,
) -> StoredPart:
    """A part of the weight `owner`. dtypes, count, size: dtypes, elements and bytes that it must have."""
    tensor = tensors.get(name)
    if tensor is None:
        reject(owner, f"has no {name}")
    if tensor.dtype not in dtypes:
        reject(owner, f"has {name} of dtype {tensor.dtype}; expected {' or '.join(dtypes)}")
    if count is not None and math.prod(tensor.shape) != count:
        reject(owner, f"has {math.prod(tensor.shape)} numbers in {name}; expected {count}")
    if size is not None and tensor.end - tensor.start != size:
        reject(owner, f"has {tensor.end - tensor.start} bytes of codes; the shape in its quant_state needs {size}")
    return as_part(tensor)


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= _MAX_DIMENSIONS
        or not all(type(size) is int and 1 <= size <= MAX_ELEMENTS for size in value)
        or math.prod(value) > MAX_ELEMENTS
    ):
        reject(name, f"has a quant_state whose shape is not a list of 1 to {_MAX_DIMENSIONS} positive integers")
    return tuple(value)


def _blocksize(name: str, value: Any) -> int:
    if type(value) is not int or value not in BLOCKSIZES:
        reject(name, f"has the blocksize {str(value)[:40]}; expected one of {', '.join(map(str, BLOCKSIZES))}")
    return int(value)


def _dtype(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in DTYPE_NAMES:
        reject(name, f"has a quant_state with dtype {str(value)[:40]!r}; expected one of {', '.join(DTYPE_NAMES)}")
    return DTYPE_NAMES[value]
