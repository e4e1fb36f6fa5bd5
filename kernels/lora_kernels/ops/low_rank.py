"""Low-rank updates as arguments of operations: contract and checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch

from lora_contract.errors import RegistryError

DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32)


class Matrix(Protocol):
    """A weight (o, i), dense or quantized."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def device(self) -> torch.device: ...


@dataclass(frozen=True, slots=True)
class LowRank:
    """dW = scale * b @ a, of one adapter on one tensor.

    b (o, r) and a (r, i): bf16, fp16 or fp32, any strides; r may be 0, which adds nothing. scale: such as alpha / r,
    times the adapter's weight; used as float32.
    """

    b: torch.Tensor
    a: torch.Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def check_dtype(tensor: torch.Tensor, *, name: str) -> None:
    """Raise RegistryError `invalid-request` unless the dtype is bf16, fp16 or fp32."""
    if tensor.dtype not in DTYPES:
        raise _invalid(f"{name} has the dtype {tensor.dtype}; expected one of {_names()}.")


def check_vector(tensor: torch.Tensor, length: int, device: torch.device, *, name: str) -> None:
    """Check that a tensor is (length,), bf16, fp16 or fp32, on the device. Raises RegistryError `invalid-request`."""
    check_dtype(tensor, name=name)
    if tensor.shape != (length,) or tensor.device != device:
        raise _invalid(f"{name} is {tuple(tensor.shape)} on {tensor.device}; expected ({length},) on {device}.")


def check_weight(w: torch.Tensor, *, name: str = "W") -> None:
    """Check that w is (o, i), bf16, fp16 or fp32. Raises RegistryError `invalid-request` that names the tensor."""
    if w.ndim != 2:
        raise _invalid(f"{name} has the shape {tuple(w.shape)}; expected a matrix (o, i).")
    check_dtype(w, name=name)


def check_output(w: Matrix, out: torch.Tensor | None, dtype: torch.dtype | None, *, name: str = "W") -> None:
    """Check an output for w. out: None to allocate it. dtype: None for that of `out`. Raises RegistryError
    `invalid-request`."""
    if dtype is not None and dtype not in DTYPES:
        raise _invalid(f"The output of {name} was requested as {dtype}; expected one of {_names()}.")
    if out is None:
        return
    check_weight(out, name=f"The output of {name}")
    if out.shape != w.shape or out.device != w.device or (dtype is not None and out.dtype != dtype):
        raise _invalid(
            f"The output of {name} is {tuple(out.shape)} {out.dtype} on {out.device}; "
            f"expected {tuple(w.shape)} {dtype or out.dtype} on {w.device}."
        )
    if out.numel() > 1 and 0 in out.stride():
        raise _invalid(
            f"The output of {name} is an expanded view, whose elements share memory; expected distinct ones."
        )


def check_adapters(w: Matrix, adapters: Sequence[LowRank], *, name: str = "W") -> None:
    """Check each adapter's factors against W and each other. Raises RegistryError `invalid-request` that names them."""
    rows, columns = w.shape
    for index, adapter in enumerate(adapters):
        for half, factor in (("B", adapter.b), ("A", adapter.a)):
            if factor.ndim != 2 or factor.dtype not in DTYPES or factor.device != w.device:
                raise _invalid(
                    f"{half} of adapter {index} on {name} is {tuple(factor.shape)} {factor.dtype} on {factor.device}; "
                    f"expected a matrix of {_names()} on {w.device}."
                )
        if adapter.b.shape != (rows, adapter.rank) or adapter.a.shape != (adapter.rank, columns):
            raise _invalid(
                f"B {tuple(adapter.b.shape)} and A {tuple(adapter.a.shape)} of adapter {index} do not match {name} "
                f"{tuple(w.shape)}; expected ({rows}, r) and (r, {columns})."
            )


def delta_sum(w: Matrix, adapters: Sequence[LowRank], compute: torch.dtype) -> torch.Tensor:
    """dW (o, i) in plain torch: the reference implementation of `tiles.delta_sum`. The sum begins with the first
    adapter of a rank above 0, so that a product of -0 stays one. compute: dtype of all products and sums."""
    total = None
    for adapter in adapters:
        if not adapter.rank:
            continue
        scale = torch.tensor(adapter.scale, dtype=torch.float32, device=w.device)
        product = (adapter.b.to(compute) @ adapter.a.to(compute)) * scale.to(compute)
        total = product if total is None else total.add_(product)
    return torch.zeros(w.shape, dtype=compute, device=w.device) if total is None else total


def _invalid(message: str) -> RegistryError:
    return RegistryError("invalid-request", message, hint="Pass tensors of the expected shapes and dtypes.")


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
