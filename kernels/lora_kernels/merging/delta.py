"""What an adapter does to a tensor, as data."""

from __future__ import annotations

from typing import Literal

import msgspec

from lora_reg.spec.adapter.config import AdapterConfig
from lora_reg.spec.tensors import Header

DeltaKind = Literal["linear", "embedding", "replace"]


class AdapterInput(msgspec.Struct, frozen=True):
    """An adapter to merge: its parsed config, the header of its weight file, its weight in the sum.

    file: the name under which its source knows the weight file.
    """

    config: AdapterConfig
    header: Header
    weight: float = 1.0
    file: str = "adapter_model.safetensors"


class Factor(msgspec.Struct, frozen=True):
    """A tensor of an adapter file. start / end: its bytes in that file, header included."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Delta(msgspec.Struct, frozen=True):
    """What one adapter does to one tensor.

    linear: scale * B @ A is added, to the transpose where `transposed`. embedding: scale * (B @ A)^T is added.
    replace: the tensor becomes `b`; `a` is None and the scale is 1. scale holds the adapter's weight already.
    """

    adapter: int
    kind: DeltaKind
    module: str
    scale: float
    a: Factor | None
    b: Factor
    transposed: bool = False
