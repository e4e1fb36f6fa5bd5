"""A running model's parameters as the tensors of its base's files, under whatever names the model has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
import torch

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModules, modules_of
from lora_contract.pipelines import is_pipeline
from lora_contract.tensors import DTYPE_NAMES
from lora_kernels.merging.device.operands import DTYPES
from lora_kernels.types.matching.tied import Tie, tie_of

_BITS: Final = {2: torch.int16, 4: torch.int32}
_SHORT: Final = {dtype: short for short, dtype in DTYPES.items()}
_LONG: Final = {short: name for name, short in DTYPE_NAMES.items()}


class Parameter(NamedTuple):
    """A parameter of the model. name: in the model. stored: its tensor in the base's files, under the name that a plan
    has for it. values: its memory, contiguous."""

    name: str
    stored: BaseTensor
    values: torch.Tensor

    @property
    def dtype(self) -> str:
        """In the notation of safetensors."""
        return _SHORT[self.values.dtype]

    @property
    def address(self) -> int:
        return self.values.data_ptr()


@dataclass(frozen=True)
class Parameters:
    """All parameters of a model that the base has.

    Args:
        found: by the name of the tensor in the base's files.
        unknown: names in the model of parameters that the base's files do not have as they are.
        tie: the base's tied layers; None if it ties none.
        dtype: of the model if it was loaded in another one than the files have, such as `float32`; else None.
        device: of all of them.
    """

    found: Mapping[str, Parameter]
    unknown: tuple[str, ...]
    tie: Tie | None
    dtype: str | None
    device: torch.device

    @property
    def shared(self) -> bool:
        """Whether the two layers that the base ties are one tensor in the model."""
        if self.tie is None:
            return False
        pair = [self.found.get(layer.weight.name) for layer in (self.tie.embedding, self.tie.head)]
        return None in pair or len({known.address for known in pair if known is not None}) == 1


def match_parameters(base: BaseFingerprint, parameters: Mapping[str, torch.Tensor]) -> Parameters:
    """Match a model's parameters by name with the tensors of its base.

    Raises RegistryError `base-mismatch`, with the name, for shapes that differ and for a model of which the base has
    nothing; `unsupported` for pipelines and for parameters that are quantized, not contiguous, or on several devices.
    """
    if is_pipeline(base.config):
        raise RegistryError(
            "unsupported",
            f"The base is a pipeline ({base.architecture}); adapters are swapped in single models.",
            hint="Merge the adapter and load the merged pipeline.",
        )
    modules = modules_of(base)
    found: dict[str, Parameter] = {}
    unknown = []
    for name, values in parameters.items():
        stored = _stored(name, modules)
        if stored is None:
            unknown.append(name)
        elif stored.dtype in DTYPES:
            found.setdefault(stored.name, _parameter(name, stored, values))
    if not found:
        raise RegistryError(
            "base-mismatch",
            f"The base ({base.architecture}) has none of the model's {len(parameters)} parameters"
            + (f", such as {unknown[0]}." if unknown else "."),
            hint="Pass dict(model.named_parameters()) of the model without PEFT's wrapper, and the folder that it was "
            "loaded from.",
        )
    devices = {str(known.values.device): known for known in found.values()}
    if len(devices) > 1:
        where = " and ".join(f"{known.name} on {device}" for device, known in sorted(devices.items())[:2])
        raise RegistryError(
            "unsupported",
            f"The model is on {len(devices)} devices ({where}); adapters are swapped on one card.",
            hint="Load the model onto one device.",
        )
    device = next(iter(found.values())).values.device
    return Parameters(found, tuple(unknown), tie_of(modules), _dtype_of(found), device)


def same_values(parameter: Parameter, stored: torch.Tensor, first: int) -> bool:
    """Whether a parameter holds stored elements from `first` on, to the bit, converted to its dtype. stored: (n,), on
    its device."""
    own = parameter.values.view(-1)[first : first + stored.shape[0]]
    bits = _BITS[own.itemsize]
    return torch.equal(own.view(bits), stored.to(own.dtype).view(bits))


def _stored(name: str, modules: BaseModules) -> BaseTensor | None:
    for group in modules.sharing.groups:
        for member in group.members:
            if member.tensor is None and name in (member.name, member.stored):
                return msgspec.structs.replace(group.held, name=member.stored)
    return modules.resolve_parameter(name)


def _parameter(name: str, stored: BaseTensor, given: torch.Tensor) -> Parameter:
    values = given.detach()
    if values.dtype not in _SHORT:
        raise RegistryError(
            "unsupported",
            f"{name} is {values.dtype} {tuple(values.shape)} in the model; the base stores {stored.dtype} "
            f"{stored.shape}. Adapters are swapped in floating-point weights.",
            hint="Load the model in bfloat16, float16 or float32.",
            tensor=name,
        )
    if tuple(values.shape) != tuple(stored.shape):
        raise RegistryError(
            "base-mismatch",
            f"{name} is {tuple(values.shape)} in the model; the base's {stored.name} is {stored.shape}.",
            hint="Pass the folder that the model was loaded from.",
            tensor=name,
        )
    if not values.is_contiguous() or values.device.type == "meta":
        what = "has no memory (meta device)" if values.device.type == "meta" else "is not contiguous"
        raise RegistryError(
            "unsupported", f"{name} {what} in the model.", hint="Load the model anew, without offloading.", tensor=name
        )
    return Parameter(name, stored, values)


def _dtype_of(found: Mapping[str, Parameter]) -> str | None:
    changed = {known.dtype: known for known in found.values() if known.dtype != known.stored.dtype}
    if len(changed) > 1:
        what = " and ".join(f"{known.name} is {dtype}" for dtype, known in sorted(changed.items()))
        raise RegistryError(
            "unsupported",
            f"The model's dtypes are not those of one merge: {what}.",
            hint="Load the model in one dtype, or in that of its files.",
        )
    return _LONG[next(iter(changed))] if changed else None
