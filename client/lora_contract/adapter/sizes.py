"""Checks that symbolic shapes cannot express: products of dimensions that must equal the module's sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_contract.adapter.slots import AdapterType, Shapes
from lora_contract.modules import BaseModule


def size_fault(kind: AdapterType, shapes: Shapes, module: BaseModule, raw: Mapping[str, Any]) -> str | None:
    """What does not agree with the module, as a clause; None if all agrees or the module's sizes are unknown."""
    out, in_ = module.out, module.in_
    if kind.fault is None or out is None or in_ is None or module.kind != "linear":
        return None
    return kind.fault(shapes, out, in_, raw)


def lokr(shapes: Shapes, out: int, in_: int, _: Mapping[str, Any]) -> str | None:
    first, second = _factor(shapes, "lokr_w1"), _factor(shapes, "lokr_w2")
    if first is None or second is None:
        missing = "lokr_w1" if first is None else "lokr_w2"
        return f"{missing} is missing or incomplete"
    made = (first[0] * second[0], first[1] * second[1])
    return None if made == (out, in_) else f"the Kronecker product has the shape {list(made)}, expected {[out, in_]}"


def _factor(shapes: Shapes, name: str) -> tuple[int, int] | None:
    whole, a, b = shapes.get(name), shapes.get(f"{name}_a"), shapes.get(f"{name}_b")
    if whole is not None and len(whole) == 2:
        return whole[0], whole[1]
    if a is not None and b is not None and len(a) == len(b) == 2 and a[1] == b[0]:
        return a[0], b[1]
    return None


def c3a(shapes: Shapes, out: int, in_: int, _: Mapping[str, Any]) -> str | None:
    kernel = shapes.get("c3a_kernel", ())
    if len(kernel) == 3 and (kernel[0] * kernel[2], kernel[1] * kernel[2]) != (out, in_):
        return f"c3a_kernel covers {kernel[0] * kernel[2]} by {kernel[1] * kernel[2]}, expected {out} by {in_}"
    return None


def oft(shapes: Shapes, _out: int, in_: int, _: Mapping[str, Any]) -> str | None:
    rotation = shapes.get("oft_R.weight")
    if rotation is None or len(rotation) != 2:
        return None
    block = next((size for size in range(2, in_ + 1) if size * (size - 1) // 2 >= rotation[1]), 0)
    if block * (block - 1) // 2 != rotation[1]:
        return f"oft_R.weight has {rotation[1]} columns, which is not of the form b(b-1)/2"
    if rotation[0] * block != in_ and not (rotation[0] == 1 and in_ % block == 0):
        return f"oft_R.weight has {rotation[0]} blocks of {block}, expected {in_} in total"
    return None


def boft(shapes: Shapes, _out: int, in_: int, _: Mapping[str, Any]) -> str | None:
    rotation = shapes.get("boft_R", ())
    if len(rotation) == 4 and rotation[1] * rotation[2] != in_:
        return f"boft_R has {rotation[1]} blocks of {rotation[2]}, expected {in_} in total"
    return None


def gralora(shapes: Shapes, out: int, in_: int, _: Mapping[str, Any]) -> str | None:
    a, b = shapes.get("gralora_A", ()), shapes.get("gralora_B", ())
    if len(a) != 3 or len(b) != 3:
        return "gralora_A or gralora_B is missing"
    if a[0] != b[0] or a[2] != b[1] or a[0] * a[1] != in_ or b[0] * b[2] != out:
        return f"gralora_A {list(a)} and gralora_B {list(b)} do not cover {out} by {in_}"
    return None


def road(shapes: Shapes, out: int, _in: int, _: Mapping[str, Any]) -> str | None:
    size = shapes.get("road_theta", (0,))
    if len(size) == 1 and size[0] not in (out // 2, out, 2 * out):
        return f"road_theta has {size[0]} values, expected {out // 2}, {out} or {2 * out}"
    return None


def vblora(shapes: Shapes, out: int, in_: int, raw: Mapping[str, Any]) -> str | None:
    length = raw.get("vector_length", 256)
    a, b = shapes.get("vblora_logits_A", ()), shapes.get("vblora_logits_B", ())
    if type(length) is not int or (a and a[1] * length != in_) or (b and b[0] * length != out):
        return f"logits of the shapes {list(a)} and {list(b)} do not cover {out} by {in_} with vectors of {length}"
    return None
