"""Weights of GPTQ (AutoGPTQ, GPTQModel, Optimum): `M.qweight`, `M.qzeros`, `M.scales` and `M.g_idx`.

Codes of 2, 3, 4 or 8 bits are packed along the inputs, zeros along the outputs. Version 1 of the format stores each
zero less one, version 2 as it is.
"""

from __future__ import annotations

from typing import Final

from lora_contract.base import BaseTensor
from lora_contract.modules import is_transposed
from lora_kernels.quantized.layout import Grid, Quantized, Scale
from lora_kernels.quantized.parts import QuantizedBase, as_part, reject, show, unread

BITS: Final = (2, 3, 4, 8)
_WORD: Final = 32
# What is added to a stored zero, by the name of the format.
_STEPS: Final = {"gptq": 1, "gptq_v2": 0}
_CODES: Final = ("I32", "U32")
SCALES: Final[dict[str, Scale]] = {"F16": "F16", "BF16": "BF16", "F32": "F32"}


def read_gptq(known: QuantizedBase) -> dict[str, Quantized]:
    """Raises RegistryError `unsupported` for other layouts (Marlin, BitBLAS, ...), `rejected` for damaged weights."""
    config = known.config
    layout = str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()
    if layout not in _STEPS or config.get("is_marlin_format"):
        unread(
            f"its weights are stored in the layout {'marlin' if config.get('is_marlin_format') else layout[:40]!r}",
            "Save it with `checkpoint_format` gptq or gptq_v2, or merge onto the full-precision base.",
        )
    if config.get("pack_dtype", "int32") != "int32":
        unread(f"its codes are packed in {str(config['pack_dtype'])[:40]}")
    return {
        f"{name.removesuffix('.qweight')}.weight": _weight(known, name.removesuffix(".qweight"), _STEPS[layout])
        for name in known.tensors
        if name.endswith(".qweight")
    }


def _weight(known: QuantizedBase, path: str, step: int) -> Quantized:
    name = f"{path}.weight"
    codes, scales, zeros = (matrix(known, name, f"{path}.{leaf}") for leaf in ("qweight", "scales", "qzeros"))
    groups, out = scales.shape
    bits, odd = divmod(zeros.shape[1] * _WORD, out) if out else (0, 1)
    if odd or bits not in BITS:
        bits = known.config.get("bits", 0)
        if bits not in BITS or zeros.shape[1] != -(-out * bits // _WORD):
            reject(
                name, f"has zeros of the shape {show(zeros.shape)} for {out} outputs; expected 2, 3, 4 or 8 bits each"
            )
    inputs = codes.shape[0] * _WORD // bits
    if codes.shape[1] != out or zeros.shape[0] != groups or codes.shape[0] * _WORD % bits or not inputs:
        reject(
            name,
            f"has {show(codes.shape)} words of codes, {show(scales.shape)} scales and {show(zeros.shape)} words of "
            f"zeros, which do not agree at {bits} bits",
        )
    order = known.tensors.get(f"{path}.g_idx")
    if order is None:
        if known.config.get("desc_act"):
            reject(name, f"has no {path}.g_idx, although config.json says desc_act")
    elif order.dtype not in _CODES or order.shape != (inputs,):
        reject(name, f"has {order.name} of {order.dtype} and the shape {show(order.shape)}; expected I32 and {inputs}")
    # Codes lie as (in, out): of a layer like those of GPT-2, as its weight does in a plain checkpoint.
    own = is_transposed(known.base.model_type, path)
    group = _group(known, name, inputs, groups)
    return Quantized(
        scheme=f"gptq of {bits} bits",
        shape=(inputs, out) if own else (out, inputs),
        dtype=known.dtype(scales.dtype),
        packed=as_part(codes),
        absmax=as_part(scales),
        grid=Grid(
            codes="up" if own else "down",
            bits=bits,
            cell=(group, 1) if own else (1, group),
            shape=(groups, out) if own else (out, groups),
            scale=SCALES[scales.dtype],
            turned=not own,
            zeros=as_part(zeros),
            zero_codes="along" if own else "bits",
            zero_step=step,
            order=as_part(order) if order is not None else None,
        ),
    )


def matrix(known: QuantizedBase, owner: str, name: str) -> BaseTensor:
    """A part of a weight that must be a matrix: of words, or of scales."""
    tensor = known.tensors.get(name)
    if tensor is None:
        reject(owner, f"has no {name}")
    dtypes = tuple(SCALES) if name.endswith("scales") else _CODES
    if tensor.dtype not in dtypes or len(tensor.shape) != 2:  # noqa: PLR2004
        reject(
            owner, f"has {name} of {tensor.dtype} and the shape {show(tensor.shape)}; expected a matrix of {dtypes[0]}"
        )
    return tensor


def _group(known: QuantizedBase, name: str, inputs: int, groups: int) -> int:
    """The inputs of a group; of the last, if it is short, fewer."""
    size = known.config.get("group_size", -1)
    if type(size) is not int or size <= 0:
        size = inputs
    if -(-inputs // size) != groups:
        # A module may have a group size of its own (`dynamic`).
        size = inputs // groups if groups and inputs % groups == 0 else 0
    if not size:
        reject(name, f"has {groups} groups for {inputs} inputs")
    return size
