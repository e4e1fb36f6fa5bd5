"""Factors and weights of a tensor on the device, as arguments of `lora_kernels.ops`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.sources import Source
from lora_kernels.merging.device.work import Part
from lora_kernels.merging.plan import TensorPlan
from lora_kernels.merging.tied_copies import check_copies
from lora_kernels.numeric.blocks import matrix
from lora_kernels.ops import FourBit, Int8Rows, LowRank, Nested
from lora_kernels.quantized.absmax import NestedAbsmax
from lora_kernels.quantized.codes import CODEBOOKS
from lora_kernels.quantized.layout import Quantized
from lora_kernels.quantized.weights import read_absmax, read_part
from lora_kernels.types.forms.low_rank import LowRankProduct
from lora_kernels.types.lora.dora import DoraProduct
from lora_kernels.types.lora.stacks import ExpertPart
from lora_kernels.types.updates import Inputs, UpdateSpec

DTYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Operands:
    """Reads what a wave needs besides the weights that were copied up. For one thread.

    base: source of the base's files. readers: one per adapter of the plan.
    """

    def __init__(self, base: Source, readers: Sequence[FactorReader], device: torch.device) -> None:
        self._base = base
        self._readers = readers
        self._device = device
        self._last: tuple[str, list[LowRank]] = ("", [])

    def adapters(self, part: Part) -> list[LowRank]:
        """The low-rank updates of a part's rows. The factors of a tensor that goes by rows are read once.

        Raises RegistryError `rejected` if a value is not finite, or tied copies differ.
        """
        tensor = part.tensor
        if self._last[0] != tensor.name:
            for delta in tensor.deltas:
                check_copies(delta.copies, self._readers[delta.adapter])
            found = [self._low_rank(delta.update, delta.adapter, delta.module) for delta in tensor.deltas]
            self._last = tensor.name, found
        return [LowRank(found.b[part.r0 : part.r1], found.a, found.scale) for found in self._last[1]]

    def dora(self, tensor: TensorPlan) -> tuple[LowRank, torch.Tensor]:
        """Update and magnitudes (outputs,) of the only adapter of a tensor. Raises as `adapters` does."""
        (delta,) = tensor.deltas
        assert isinstance(delta.update, DoraProduct)
        reader = self._readers[delta.adapter]
        check_copies(delta.copies, reader)
        magnitude = self._up(reader.load(delta.update.magnitude).reshape(-1))
        return self._low_rank(delta.update.product, delta.adapter, delta.module), magnitude

    def weight(self, tensor: TensorPlan, raw: torch.Tensor) -> torch.Tensor | FourBit | Int8Rows:
        """The whole weight (rows, columns). raw: its bytes, or those of its codes, uint8 on the device.

        Raises RegistryError `rejected` if a codebook is not that of its scheme.
        """
        shape = matrix(tensor.shape, tensor.columns)
        known = tensor.quantized
        if known is None:
            return raw.view(DTYPES[tensor.source_dtype]).reshape(shape)
        if known.scheme == "int8":
            scb = self._up(read_part(self._base, known.absmax, np.dtype("<f4")))
            return Int8Rows(raw.view(torch.int8).reshape(shape), scb)
        return self._four_bit(known, raw, shape)

    def _four_bit(self, known: Quantized, raw: torch.Tensor, shape: tuple[int, int]) -> FourBit:
        absmax = read_absmax(known, self._base)
        values = self._up(CODEBOOKS[known.scheme].values)
        if not isinstance(absmax, NestedAbsmax):
            return FourBit(raw, self._up(absmax.values), values, shape, known.blocksize)
        offset = torch.tensor(float(absmax.offset), device=self._device)
        nested = Nested(self._up(absmax.nested), self._up(absmax.values), offset, absmax.blocksize)
        return FourBit(raw, self._up(absmax.codes), values, shape, known.blocksize, nested)

    def _low_rank(self, update: UpdateSpec, adapter: int, module: str) -> LowRank:
        assert isinstance(update, LowRankProduct | ExpertPart)
        left, right, scale = update.read(_inputs(self._readers[adapter], module))
        # Half the bytes, and what the matrix units multiply as it is.
        dtype = DTYPES.get(update.stored_dtype or "", torch.float32)
        return LowRank(self._up(left, dtype), self._up(right, dtype), scale)

    def _up(self, values: npt.NDArray[Any], dtype: torch.dtype | None = None) -> torch.Tensor:
        # torch warns of memory that it must not write.
        host = torch.from_numpy(values if values.flags.writeable else values.copy())
        return (host if dtype is None else host.to(dtype)).to(self._device)


def _inputs(reader: FactorReader, module: str) -> Inputs:
    def unknown() -> Any:
        raise AssertionError(f"{module}: a low-rank product does not depend on the weight")

    return Inputs(reader, module=module, weight=1.0, before=unknown, stored=unknown, first=True)
