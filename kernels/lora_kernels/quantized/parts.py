"""What readers of quantized weights share: parts of a weight by name, and refusals that name the weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NoReturn

from lora_contract.adapter.files import ReadFile
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.quantized import quantization_of
from lora_contract.tensors import DTYPE_BYTES, DTYPE_NAMES
from lora_kernels.quantized.layout import StoredPart

_NESTED: Final = ("text_config", "llm_config", "language_config")
_HALVES: Final = ("BF16", "F16")


@dataclass(frozen=True)
class QuantizedBase:
    """A base whose config.json describes a quantization. read: reads its files."""

    base: BaseFingerprint
    read: ReadFile

    @cached_property
    def tensors(self) -> dict[str, BaseTensor]:
        return self.base.by_name()

    @cached_property
    def config(self) -> dict[str, Any]:
        return quantization_of(self.base.config)

    def dtype(self, scales: str) -> str:
        """The dtype of a dequantized weight: that of the model by its config.json, else of most of its other weights,
        else of the scales if they have half precision."""
        for part in (self.base.config, *(self.base.config.get(key) for key in _NESTED)):
            named = part.get("dtype") or part.get("torch_dtype") if isinstance(part, Mapping) else None
            if isinstance(named, str) and named in DTYPE_NAMES:
                return DTYPE_NAMES[named]
        return self._most or (scales if scales in _HALVES else "BF16")

    @cached_property
    def _most(self) -> str | None:
        counts: Counter[str] = Counter()
        for tensor in self.base.tensors:
            if tensor.dtype in _HALVES and not tensor.name.endswith(("scale", "scales", "scale_inv")):
                counts[tensor.dtype] += math.prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]
        return max(sorted(counts), key=lambda dtype: counts[dtype]) if counts else None

    def part(
        self,
        owner: str,
        name: str,
        *,
        dtypes: tuple[str, ...] = ("F32",),
        count: int | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> StoredPart:
        """A part of the weight `owner`. dtypes, count, shape: that it must have."""
        tensor = self.tensors.get(name)
        if tensor is None:
            reject(owner, f"has no {name}")
        if tensor.dtype not in dtypes:
            reject(owner, f"has {name} of dtype {tensor.dtype}; expected {' or '.join(dtypes)}")
        if count is not None and math.prod(tensor.shape) != count:
            reject(owner, f"has {math.prod(tensor.shape)} numbers in {name}; expected {count}")
        if shape is not None and tensor.shape != shape:
            reject(owner, f"has {name} of the shape {show(tensor.shape)}; expected {show(shape)}")
        return as_part(tensor)


def as_part(tensor: BaseTensor) -> StoredPart:
    return StoredPart(tensor.name, tensor.dtype, tensor.file, tensor.start, tensor.end)


def show(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def reject(name: str, why: str, hint: str = "") -> NoReturn:
    """Raise RegistryError `rejected` for a weight whose parts are missing or do not agree."""
    raise RegistryError(
        "rejected",
        f"The quantized weight {name} of the base {why}.",
        hint=hint or "Save the quantized model again with transformers, or merge onto the full-precision base.",
        tensor=name,
    )


def unread(what: str, hint: str = "") -> NoReturn:
    """Raise RegistryError `unsupported` for a format that is not read."""
    raise RegistryError(
        "unsupported",
        f"The base is quantized, and {what}, which is not read here.",
        hint=hint
        or "Merge onto the full-precision base from which it was made, or dequantize it with the library "
        "that wrote it and register the result as a base.",
    )
