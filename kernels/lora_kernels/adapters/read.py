"""Read low-rank adapters module by module: LoRA with its patterns, AdaLoRA, LoHa, LoKr, all as dW = scale * b @ a."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import numpy as np

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.parts import held_components
from lora_contract.adapter.scaling import scales
from lora_contract.tensors import Header, TensorEntry
from lora_kernels.adapters import products
from lora_kernels.adapters.groups import Extra, contents, factor, refuse, rejected
from lora_kernels.adapters.low_rank import SUFFIXES, LowRankKind, LowRankModule, ModuleShape
from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.folders import read_adapter
from lora_kernels.checkpoint.records import Factor
from lora_kernels.checkpoint.sources import FolderSource, Source
from lora_kernels.numeric.dtypes import F32

Tensors = Mapping[str, TensorEntry]


def widest(dtypes: Iterable[str]) -> str:
    """The narrowest dtype that represents all of these exactly; float64 counts as float32, as PEFT loads it."""
    found = sorted({"F32" if dtype == "F64" else dtype for dtype in dtypes})
    return found[0] if len(found) == 1 else "F32"


class AdapterReader:
    """An adapter whose modules are read one at a time. Opening it reads no tensor. May be used from several threads if
    its source may.

    modules: sorted paths, including modules of rank 0. extras: tensors that are not factors. parts: it has a part for
    each component of a pipeline.
    """

    def __init__(self, config: AdapterConfig, header: Header, source: Source, file: str) -> None:
        """Raises RegistryError `unsupported` for adapters that are not low-rank updates, `rejected` for a missing half,
        shapes that do not match and tensors that belong to no module."""
        found = contents(config, header)
        self.config = config
        self.extras: tuple[Extra, ...] = found.extras
        self.parts = bool(held_components(header))
        self._factors = FactorReader(source, file)
        self._tensors = found.modules
        self._scale = scales(config)
        self._shapes = {module: self._shape(module, tensors) for module, tensors in found.modules.items()}
        self.modules: tuple[str, ...] = tuple(self._shapes)

    def shape(self, module: str) -> ModuleShape:
        return self._shapes[module]

    def load(self, module: str) -> LowRankModule:
        """Read one module. Raises RegistryError `rejected` if a value is not finite, `corrupt` if the file is
        truncated."""
        shape, tensors = self._shapes[module], self._tensors[module]
        scale = self._scale(module).scale
        if self.config.peft_type == "ADALORA":
            a, b = self._load(tensors["lora_A"]) * self._load(tensors["lora_E"]), self._load(tensors["lora_B"])
        elif self.config.peft_type in _PRODUCTS:
            factors = {suffix: self._load(entry) for suffix, entry in tensors.items()}
            a, b = _PRODUCTS[self.config.peft_type](factors)
        else:
            a, b = (self._load(tensors[suffix]) for suffix in SUFFIXES[shape.kind])
        return LowRankModule(
            module,
            shape.kind,
            a.reshape(shape.rank, shape.columns),
            b.reshape(shape.outputs, shape.rank),
            scale,
            shape.inputs,
        )

    def raw(self, tensor: Factor) -> bytes:
        """The stored bytes of an extra."""
        out = np.empty(tensor.end - tensor.start, np.uint8)
        return self._factors.raw(tensor, 0, out).tobytes()

    def check_finite(self, tensor: Factor) -> None:
        """Raise RegistryError `rejected` if an extra has a value that is not finite."""
        self._factors.load(tensor)

    def _load(self, entry: TensorEntry) -> F32:
        return self._factors.load(factor(entry))

    def _shape(self, module: str, tensors: Tensors) -> ModuleShape:
        shape = _SHAPES.get(self.config.peft_type, _lora)(module, tensors)
        expected = self._scale(module).r
        if self.config.peft_type == "LORA" and shape.rank not in (0, expected):
            entry = tensors[SUFFIXES[shape.kind][0]]
            raise rejected(
                f"{entry.name} has rank {shape.rank}, but adapter_config.json gives {module} rank {expected}", entry
            )
        return shape


@contextmanager
def open_adapter(folder: str | os.PathLike[str]) -> Iterator[AdapterReader]:
    """The reader of an adapter folder, whose file is open until the end of the `with` block."""
    adapter = read_adapter(folder)
    with FolderSource(folder) as source:
        yield AdapterReader(adapter.config, adapter.header, source, adapter.file)


def _lora(module: str, tensors: Tensors) -> ModuleShape:
    embedding = any(suffix in tensors for suffix in SUFFIXES["embedding"])
    linear = any(suffix in tensors for suffix in SUFFIXES["linear"])
    if embedding and linear:
        first = tensors[min(tensors)]
        raise rejected(f"{module} has factors of a linear layer and of an embedding, expected one pair", first)
    a, b = _parts(module, tensors, *SUFFIXES["embedding" if embedding else "linear"])
    kind: LowRankKind = "embedding" if embedding else "conv" if len(a.shape) > 2 else "linear"
    ones = (1,) * (len(a.shape) - 2)
    if len(a.shape) < 2 or (kind == "embedding" and ones) or b.shape != (*b.shape[:1], a.shape[0], *ones):
        raise rejected(f"{a.name} {_text(a)} and {b.name} {_text(b)} are not a pair (r, in) and (out, r)", b)
    return ModuleShape(module, kind, a.shape[0], a.shape[1:], b.shape[0], _dtype(a, b))


def _adalora(module: str, tensors: Tensors) -> ModuleShape:
    a, b, e = _parts(module, tensors, "lora_A", "lora_B", "lora_E")
    if len(a.shape) != 2 or b.shape != (*b.shape[:1], a.shape[0]) or e.shape != (a.shape[0], 1):
        raise rejected(f"{a.name} {_text(a)}, {b.name} {_text(b)} and {e.name} {_text(e)} do not match", b)
    return ModuleShape(module, "linear", a.shape[0], a.shape[1:], b.shape[0], _dtype(a, b, e))


def _loha(module: str, tensors: Tensors) -> ModuleShape:
    """A module of rank r has rank r^2 here, see `products`."""
    parts = _parts(module, tensors, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    if "hada_t1" in tensors or "hada_t2" in tensors:
        refuse("LoHa with Tucker cores", module)
    (left1, right1, left2, right2) = (part.shape for part in parts)
    if not (
        all(len(part.shape) == 2 for part in parts)
        and (left1[0], right1[1]) == (left2[0], right2[1])
        and (left1[1], left2[1]) == (right1[0], right2[0])
    ):
        raise rejected(f"the factors of {module} do not fit each other: {', '.join(map(_text, parts))}", parts[0])
    return ModuleShape(module, "linear", left1[1] * left2[1], right1[1:], left1[0], _dtype(*parts))


def _lokr(module: str, tensors: Tensors) -> ModuleShape:
    if "lokr_t2" in tensors:
        refuse("LoKr with Tucker cores", module)
    halves = [
        _parts(module, tensors, *((name,) if name in tensors else (f"{name}_a", f"{name}_b")))
        for name in ("lokr_w1", "lokr_w2")
    ]
    parts = [part for half in halves for part in half]
    if not all(len(part.shape) == 2 for part in parts):
        refuse("LoKr on a convolution", module)
    if any(half[0].shape[1] != half[-1].shape[0] for half in halves if len(half) == 2):
        raise rejected(f"the factors of {module} do not fit each other: {', '.join(map(_text, parts))}", parts[0])
    ranks = [min(half[0].shape) if len(half) == 1 else half[0].shape[1] for half in halves]
    inputs = math.prod(half[-1].shape[1] for half in halves)
    outputs = math.prod(half[0].shape[0] for half in halves)
    return ModuleShape(module, "linear", math.prod(ranks), (inputs,), outputs, _dtype(*parts))


def _parts(module: str, tensors: Tensors, *suffixes: str) -> list[TensorEntry]:
    for suffix in suffixes:
        if suffix not in tensors:
            present = tensors[min(tensors)]
            raise rejected(
                f"{present.name} has no matching {suffix.removesuffix('.weight')}; half an update of {module} "
                "cannot be used",
                present,
            )
    parts = [tensors[suffix] for suffix in suffixes]
    for entry in parts:
        factor(entry)
    return parts


def _dtype(*entries: TensorEntry) -> str:
    return widest([entry.dtype for entry in entries])


def _text(entry: TensorEntry) -> str:
    return " x ".join(map(str, entry.shape)) or "scalar"


_SHAPES: Final[Mapping[str, Callable[[str, Tensors], ModuleShape]]] = {
    "ADALORA": _adalora,
    "LOHA": _loha,
    "LOKR": _lokr,
}
_PRODUCTS: Final = {"LOHA": products.hadamard, "LOKR": products.kronecker}
