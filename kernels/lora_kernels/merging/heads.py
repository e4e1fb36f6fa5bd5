"""The head that an adapter of a task brings: the architecture of the result and its new tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from lora_contract.adapter.headed import Headed, headed
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.folders import AdapterInput
from lora_kernels.merging.precision import main_dtype
from lora_kernels.quantized.layout import Quantized


@dataclass(frozen=True)
class MergedHead:
    """base: with the parameters of the class alone; those that an adapter brings have no bytes in the base (`start` is
    `end`). parameters: names of all parameters of the head."""

    architecture: str
    labels: int | None
    base: BaseFingerprint
    parameters: tuple[str, ...]


def merged_head(
    base: BaseFingerprint, adapters: Sequence[AdapterInput], quantized: Mapping[str, Quantized]
) -> MergedHead | None:
    """The head that one of the adapters brings; None if none does. Raises RegistryError `rejected` if adapters bring
    different ones, `unsupported` for a class with parameters that nobody has."""
    found = [headed(base, adapter.config, adapter.header.tensors) for adapter in adapters]
    bringing = [head for head in found if head is not None and (head.new or head.architecture != base.architecture)]
    if not bringing:
        return None
    head = next((one for one in bringing if one.new), bringing[0])
    other = next((one for one in bringing if one.architecture != head.architecture), None)
    if other is not None:
        raise RegistryError(
            "rejected",
            f"One adapter was trained on {head.architecture} and another on {other.architecture}; one model cannot "
            "have both heads.",
            hint="Merge adapters of one task.",
        )
    if head.unsaved:
        raise RegistryError(
            "unsupported",
            f"{head.architecture} has {', '.join(head.unsaved[:4])}, which neither the adapter nor the base has; a "
            "loader would initialize it at random, so the trained model cannot be restored.",
            hint="Train again with the module in modules_to_save, or register a base that has it.",
        )
    if quantized and {tensor.name for tensor in head.base.tensors} - {tensor.name for tensor in base.tensors}:
        raise RegistryError(
            "unsupported",
            f"The base is quantized and lacks the prefix that {head.architecture} gives its parameters.",
            hint="Merge onto the full-precision base.",
        )
    return MergedHead(head.architecture, head.labels, _with_new(head, base), head.head)


def _with_new(head: Headed, base: BaseFingerprint) -> BaseFingerprint:
    dtype = main_dtype(base.tensors) or "F32"
    file = max(tensor.file for tensor in head.base.tensors)
    end = max(tensor.end for tensor in head.base.tensors if tensor.file == file)
    new = [BaseTensor(name, dtype, entry.shape, file, end, end) for name, entry in head.new.items()]
    tensors = tuple(sorted((*head.base.tensors, *new), key=lambda tensor: tensor.name))
    return msgspec.structs.replace(head.base, tensors=tensors)
