"""Dtypes and quantization of the tensors that a merge reads and writes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModule, BaseModules
from lora_contract.tensors import DTYPE_BYTES, DTYPE_NAMES, FLOAT_DTYPES
from lora_kernels.quantized.layout import Nf4Form, Quantized

NF4: Final = "nf4"
_ONTO: Final = ("fp", "nf4")
_ROUNDINGS: Final = ("nearest", "stochastic")
_LONG_NAMES: Final = {short: name for name, short in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class Precision:
    """Dtypes of a merge.

    Args:
        quantized: quantized weights of the base, by tensor name.
        linear: names of weights that NF4 applies to: those that transformers quantizes when it loads a model in 4 bits.
        skipped: paths of linear modules that are never quantized.
        output: short name of the requested dtype; None if every tensor keeps its dtype.
        main: the floating-point dtype with the most bytes.
        onto, rounding: see `plan_merge`.
    """

    quantized: Mapping[str, Quantized]
    linear: frozenset[str]
    skipped: tuple[str, ...]
    output: str | None
    main: str | None
    onto: str
    rounding: str

    @classmethod
    def of(
        cls,
        base: BaseFingerprint,
        modules: BaseModules,
        quantized: Mapping[str, Quantized],
        *,
        dtype: str | None,
        onto: str,
        rounding: str,
    ) -> Precision:
        """base, modules: of the `logical_base`. Raises RegistryError `invalid-request`, `unsupported`."""
        _check_known("output dtype", dtype or NF4, (*DTYPE_NAMES, NF4))
        _check_known("base to merge onto", onto, _ONTO)
        _check_known("rounding", rounding, _ROUNDINGS)
        if onto == "nf4" and quantized:
            raise RegistryError(
                "invalid-request",
                "The base is stored quantized, and adapters are added to its dequantized weights; no adapter was "
                "trained on an NF4 copy of them.",
                hint="Omit the option.",
            )
        written = onto == "nf4" or dtype == "nf4"
        transposed = [
            module
            for _, module in sorted(modules.modules.items())
            if module.transposed and (written or _by_outputs(module, quantized))
        ]
        if transposed:
            raise RegistryError(
                "unsupported",
                f"{transposed[0].path} is stored (in, out), as in GPT-2, and quantizers store its transpose.",
                hint="Merge in full precision.",
                module=transposed[0].path,
            )
        linear, skipped = _linear(modules, quantized) if onto == "nf4" or dtype == "nf4" else (frozenset(), ())
        output = {**DTYPE_NAMES, NF4: "NF4"}[dtype] if dtype is not None else None
        return cls(quantized, linear, skipped, output, main_dtype(base.tensors), onto, rounding)

    def keeping(self, parameters: Collection[str]) -> Precision:
        """The precision that quantizes none of these parameters: loaders leave the head of a task alone."""
        kept = self.linear.intersection(parameters)
        paths = {name.rpartition(".")[0] for name in kept}
        return replace(self, linear=self.linear - kept, skipped=tuple(sorted({*self.skipped, *paths})))

    def check(self, touched: Collection[str], base: BaseFingerprint) -> None:
        """Check that stochastic rounding applies to the output dtypes of touched tensors.

        Raises RegistryError `invalid-request` if none is bfloat16 or NF4, or if one is float16.
        """
        if self.rounding == "nearest" or not touched:
            return
        tensors = base.by_name()
        written = {name: self.dtype(tensors[name], touched=True) for name in sorted(touched) if name in tensors}
        wrong = [name for name, dtype in written.items() if dtype == "F16"]
        if wrong or not {"BF16", "NF4"}.intersection(written.values()):
            found = f"{wrong[0]} becomes F16" if wrong else "no touched tensor is written as either"
            raise RegistryError(
                "invalid-request",
                f"Stochastic rounding is for bfloat16 and NF4; {found}.",
                hint="Merge into bfloat16 or nf4, or round to the nearest.",
            )

    def through_nf4(self, name: str) -> bool:
        return self.onto == "nf4" and name in self.linear

    def dtype(self, tensor: BaseTensor, *, touched: bool) -> str:
        """The dtype of a tensor in the result; NF4 if it is written quantized."""
        if self.form(tensor) is not None:
            return "NF4"
        changed = touched or tensor.name in self.quantized or self.through_nf4(tensor.name)
        output = self.output if self.output != "NF4" else None
        dtype = output if output is not None and (changed or tensor.dtype == self.main) else tensor.dtype
        if dtype != tensor.dtype or changed:
            _check_dtypes(tensor, dtype)
        return dtype

    def form(self, tensor: BaseTensor) -> Nf4Form | None:
        """The quantized form that a tensor is written in, the base's if that is NF4; None if it is not quantized."""
        if self.output != "NF4":
            return None
        known = self.quantized.get(tensor.name)
        if known is not None and known.scheme == NF4:
            return Nf4Form(known.dtype, known.blocksize, known.nested is not None, known.packed.dtype)
        if tensor.name not in self.linear:
            return None
        _check_dtypes(tensor, tensor.dtype)
        return Nf4Form(dtype=tensor.dtype)

    def settle(
        self, raw: BaseFingerprint, base: BaseFingerprint, touched: Collection[str]
    ) -> tuple[Precision, Sequence[BaseTensor]]:
        """The precision for these touched tensors, and the tensors to read. If the result is NF4, untouched NF4
        weights are copied unchanged.

        raw: the base as stored. base: its `logical_base`.
        """
        if self.output != "NF4":
            return self, base.tensors
        kept = {name: group for name, group in self.quantized.items() if group.scheme == NF4 and name not in touched}
        rest = {name: group for name, group in self.quantized.items() if name not in kept}
        names = frozenset().union(*(group.names for group in kept.values()))
        tensors = [tensor for tensor in base.tensors if tensor.name not in kept]
        tensors += [tensor for tensor in raw.tensors if tensor.name in names]
        return replace(self, quantized=rest, linear=self.linear - kept.keys()), tensors

    def quantization(self) -> dict[str, Any] | Literal["keep"] | None:
        """`MergePlan.quantization`."""
        if self.output != "NF4":
            return None if self.quantized else "keep"
        if self.quantized and all(group.scheme == NF4 for group in self.quantized.values()):
            return "keep"
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": _LONG_NAMES.get(self.main or "", "bfloat16"),
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": list(self.skipped),
        }


def _linear(modules: BaseModules, quantized: Mapping[str, Quantized]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Names of the weights that NF4 applies to, and paths of the linear layers that it skips (output layers)."""
    experts = [path for path, module in sorted(modules.modules.items()) if module.kind == "experts"]
    if experts:
        raise RegistryError(
            "unsupported",
            f"{experts[0]} holds experts; which of its weights bitsandbytes quantizes depends on the version of "
            "transformers that loads the model.",
            hint="Merge in full precision.",
            module=experts[0],
        )
    found, skipped = set(), {"lm_head"}
    for path, module in modules.modules.items():
        if module.weight is None or not _linear_layer(path, module):
            continue
        if modules.is_output(path) and module.weight.name not in quantized:
            skipped.add(path)
        else:
            found.add(module.weight.name)
    return frozenset(found), tuple(sorted(skipped))


def _by_outputs(module: BaseModule, quantized: Mapping[str, Quantized]) -> bool:
    """Whether a module's weight is quantized by rows of outputs, as (out, in)."""
    known = quantized.get(module.weight.name) if module.weight is not None else None
    return known is not None and (known.grid is None or known.grid.codes != "up")


def _linear_layer(path: str, module: BaseModule) -> bool:
    """Whether a module is a linear layer with its own weight. The name excludes embeddings such as CLIP's of positions,
    whose kind is linear."""
    own = module.weight is not None and module.weight.name == f"{path}.weight"
    return own and module.kind == "linear" and "embed" not in path.rpartition(".")[2]


def _check_dtypes(tensor: BaseTensor, dtype: str) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise RegistryError(
            "unsupported",
            f"The base tensor {tensor.name} has the dtype {tensor.dtype}; a merge adds to floating-point weights only.",
            hint="Merge onto the full-precision base.",
            tensor=tensor.name,
        )
    if dtype == "F64" or tensor.dtype == "F64":
        raise RegistryError(
            "unsupported",
            f"The base tensor {tensor.name} has the dtype F64; a merge computes in float32 and would lose precision.",
            hint="Convert the base to float32 first.",
            tensor=tensor.name,
        )


def main_dtype(tensors: Sequence[BaseTensor]) -> str | None:
    """The floating-point dtype with the most bytes; None if the base has none."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in FLOAT_DTYPES:
            counts[tensor.dtype] += math.prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]
    return max(sorted(counts), key=lambda dtype: counts[dtype]) if counts else None


def _check_known(what: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise RegistryError("invalid-request", f"The {what} is {value!r}; expected one of {', '.join(known)}.")
