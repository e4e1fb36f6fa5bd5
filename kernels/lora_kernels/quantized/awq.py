"""Weights of AWQ (AutoAWQ, llm-awq, GPTQModel) of 4 bits: `M.qweight`, `M.qzeros` and `M.scales`.

In the layout GEMM codes and zeros are packed along the outputs, eight a word in the order 0, 2, 4, 6, 1, 3, 5, 7. In
the layout GEMV codes are packed along the inputs and zeros along the groups, in their order, with padding at the end.
"""

from __future__ import annotations

from typing import Final

from lora_kernels.quantized.gptq import SCALES, matrix
from lora_kernels.quantized.layout import Grid, Quantized
from lora_kernels.quantized.parts import QuantizedBase, as_part, reject, show, unread

BITS: Final = 4
_A_WORD: Final = 8


def read_awq(known: QuantizedBase) -> dict[str, Quantized]:
    """Raises RegistryError `unsupported` for other layouts (GEMV fast, ...), `rejected` for damaged weights."""
    config = known.config
    layout = str(config.get("version") or config.get("checkpoint_format") or config.get("format") or "gemm").lower()
    make = {"gemm": _gemm, "gemv": _gemv}.get(layout)
    if make is None:
        unread(
            f"its weights are stored in the layout {layout[:40]!r} of AWQ",
            "Quantize it again with version gemm, or merge onto the full-precision base.",
        )
    bits = config.get("bits", config.get("w_bit", BITS))
    if bits != BITS:
        unread(f"its weights are of AWQ with {str(bits)[:40]} bits")
    scaled = next((name for name in known.tensors if name.endswith("act.scales")), None)
    if scaled is not None:
        unread(
            f"{scaled} scales an activation (AutoAWQ does so in this kind of model); a plain model has no place for it",
            "Merge onto the full-precision base from which it was made.",
        )
    return {
        f"{name.removesuffix('.qweight')}.weight": make(known, name.removesuffix(".qweight"))
        for name in known.tensors
        if name.endswith(".qweight")
    }


def _gemm(known: QuantizedBase, path: str) -> Quantized:
    name = f"{path}.weight"
    codes, scales, zeros = (matrix(known, name, f"{path}.{leaf}") for leaf in ("qweight", "scales", "qzeros"))
    inputs, words = codes.shape
    groups, out = scales.shape
    if words * _A_WORD != out or zeros.shape != (groups, words) or not groups or inputs % groups:
        reject(
            name,
            f"has {show(codes.shape)} words of codes, {show(scales.shape)} scales and {show(zeros.shape)} words of "
            "zeros, which do not agree at 4 bits",
        )
    return Quantized(
        scheme="awq of 4 bits",
        shape=(out, inputs),
        dtype=known.dtype(scales.dtype),
        packed=as_part(codes),
        absmax=as_part(scales),
        grid=Grid(
            codes="awq",
            bits=BITS,
            cell=(1, inputs // groups),
            shape=(out, groups),
            scale=SCALES[scales.dtype],
            turned=True,
            zeros=as_part(zeros),
            zero_codes="awq",
        ),
    )


def _gemv(known: QuantizedBase, path: str) -> Quantized:
    name = f"{path}.weight"
    codes, scales, zeros = (matrix(known, name, f"{path}.{leaf}") for leaf in ("qweight", "scales", "qzeros"))
    out, words = codes.shape
    inputs, wide = words * _A_WORD, zeros.shape[1] * _A_WORD
    group = known.config.get("group_size", known.config.get("q_group_size", -1))
    group = group if type(group) is int and group > 0 else inputs
    if scales.shape != (out, wide) or zeros.shape[0] != out or not inputs or inputs % group or inputs // group > wide:
        reject(
            name,
            f"has {show(codes.shape)} words of codes, {show(scales.shape)} scales and {show(zeros.shape)} words of "
            f"zeros, which do not agree at 4 bits and groups of {group}",
        )
    return Quantized(
        scheme="awq of 4 bits",
        shape=(out, inputs),
        dtype=known.dtype(scales.dtype),
        packed=as_part(codes),
        absmax=as_part(scales),
        grid=Grid(
            codes="bits",
            bits=BITS,
            cell=(1, group),
            shape=(out, wide),
            scale=SCALES[scales.dtype],
            zeros=as_part(zeros),
            zero_codes="along",
        ),
    )
