"""Find the quantized weights of a base, in any of the formats that are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from lora_contract.adapter.files import ReadFile
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.quantized import method_of
from lora_contract.tensors import FLOAT_DTYPES
from lora_kernels.quantized.awq import read_awq
from lora_kernels.quantized.compressed import read_compressed
from lora_kernels.quantized.gptq import read_gptq
from lora_kernels.quantized.groups import read_bitsandbytes
from lora_kernels.quantized.layout import Quantized
from lora_kernels.quantized.modelopt import read_modelopt
from lora_kernels.quantized.parts import QuantizedBase, reject, unread
from lora_kernels.quantized.scaled import read_fp8

_METHODS: Final[Mapping[str, Callable[[QuantizedBase], dict[str, Quantized]]]] = {
    "gptq": read_gptq,
    "awq": read_awq,
    "fp8": read_fp8,
    "fbgemm_fp8": read_fp8,
    "mxfp8": read_fp8,
    "compressed-tensors": read_compressed,
    "modelopt": read_modelopt,
}
METHODS: Final = ("bitsandbytes", *_METHODS)
"""The quantization methods that are read."""
# Of activations, of sums and of kv caches: a dequantized model has none of them. After a module's path.
_RUNTIME: Final = (
    *("input_scale", "input_zero_point", "input_global_scale", "input_scale_ub", "activation_scale", "act_scale"),
    *("output_scale", "output_zero_point", "weight_observer.scale", "qscale_act"),
)
_CACHE: Final = (
    "k_scale",
    "v_scale",
    "q_scale",
    "kv_scale",
    "k_zero_point",
    "v_zero_point",
    "q_zero_point",
    "prob_scale",
)
_KEPT_CODES: Final = ("I8", "U8", "I32", "U32", "F8_E4M3", "F8_E5M2")
# What a quantized weight alone has: found without one, something is not read.
_PARTS: Final = (
    *("qweight", "qzeros", "g_idx", "weight_packed", "weight_scale", "weight_scale_inv", "weight_scale_2"),
    *("weight_zero_point", "weight_shape", "weight_global_scale", "weight_g_idx", "pre_quant_scale", "compressed"),
    *("bitmask", "row_offsets", "scale_packed", "meta"),
)
_UNSET: Final = (
    "config.json has no quantization_config. Copy the content of quantize_config.json there, with quant_method."
)


def read_quantized(base: BaseFingerprint, read: ReadFile) -> dict[str, Quantized]:
    """The quantized weights of the base, by name. Empty for other bases, and for methods that are not read.

    Of weights only a few bytes are read. Raises RegistryError `rejected` for weights with missing or inconsistent
    parts, `unsupported` for layouts of the methods that are not read.
    """
    method = method_of(base.config)
    found = read_bitsandbytes(base, read)
    if found:
        return found
    known = QuantizedBase(base, read)
    if method in _METHODS:
        found = _METHODS[method](known)
        return _complete(known, method, found) if found else _none(known, method)
    if not method and any(name.endswith(".qweight") for name in known.tensors):
        unread("config.json does not say how", _UNSET)
    if not method:
        found = read_fp8(known, strict=False)
        return _complete(known, "fp8", found) if found else {}
    return {}


def logical_base(base: BaseFingerprint, quantized: Mapping[str, Quantized]) -> BaseFingerprint:
    """The base as a model sees it: each quantized weight is one tensor of its original shape and dtype, with the byte
    range of its codes."""
    if not quantized:
        return base
    used = frozenset().union(*(group.names for group in quantized.values()))
    tensors = [tensor for tensor in base.tensors if tensor.name not in used]
    tensors += [
        BaseTensor(name, group.dtype, group.shape, group.packed.file, group.packed.start, group.packed.end)
        for name, group in quantized.items()
    ]
    return msgspec.structs.replace(base, tensors=tuple(sorted(tensors, key=lambda tensor: tensor.name)))


def _none(known: QuantizedBase, method: str) -> dict[str, Quantized]:
    """No weight is quantized, such as if only the kv cache is."""
    _refuse_rest(known, method, frozenset())
    return {}


def _complete(known: QuantizedBase, method: str, found: dict[str, Quantized]) -> dict[str, Quantized]:
    """Assign each tensor that only a quantized model has to a weight, or refuse it by name."""
    more: dict[str, list[str]] = {}
    for owner, name in _runtime(known, found):
        more.setdefault(owner, []).append(name)
    complete = {
        name: msgspec.structs.replace(weight, others=(*weight.others, *more[name])) if name in more else weight
        for name, weight in found.items()
    }
    _refuse_rest(known, method, frozenset().union(*(weight.names for weight in complete.values())))
    return complete


def _runtime(known: QuantizedBase, found: Mapping[str, Quantized]) -> Iterator[tuple[str, str]]:
    """(a weight, the name of a tensor) for all that the dequantized model does not have beside its weights."""
    first = min(found)
    for name in known.tensors:
        path, _, leaf = name.rpartition(".")
        # Of fused experts, such as `gate_up_proj_activation_scale`.
        fused = next((name.removesuffix(f"_{end}") for end in _RUNTIME if leaf.endswith(f"_{end}")), None)
        if leaf in _RUNTIME and (f"{path}.weight" in found or _is_attention(path)):
            yield f"{path}.weight" if f"{path}.weight" in found else first, name
        elif fused is not None and fused in found:
            yield fused, name
        elif leaf in _CACHE and _is_attention(path):
            yield next((weight for weight in sorted(found) if weight.startswith(f"{path}.")), first), name


def _is_attention(path: str) -> bool:
    return any("attn" in part or "attention" in part for part in path.split("."))


def _refuse_rest(known: QuantizedBase, method: str, used: frozenset[str]) -> None:
    for name, tensor in known.tensors.items():
        if name in used:
            continue
        leaf = name.rpartition(".")[2]
        if leaf in _PARTS:
            owner = f"{name.rpartition('.')[0]}.weight"
            weight = known.tensors.get(owner)
            if weight is not None and weight.dtype in FLOAT_DTYPES:
                reject(owner, f"is stored as {weight.dtype} beside {name}: it is rounded while the model runs")
            reject(owner, f"has {name}, whose use in {method} is not known here")
        if leaf == "weight" and tensor.dtype in _KEPT_CODES:
            reject(name, f"holds {tensor.dtype} codes whose scales are not found")
