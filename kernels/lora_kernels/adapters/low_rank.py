"""One module of a low-rank adapter in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from lora_kernels.numeric.dtypes import F32

LowRankKind = Literal["linear", "embedding", "conv"]

SUFFIXES: Final[dict[LowRankKind, tuple[str, str]]] = {
    "linear": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
    "conv": ("lora_A.weight", "lora_B.weight"),
}


@dataclass(frozen=True)
class ModuleShape:
    """What is known of a module without its values.

    rank: of the stored factors. inputs: the shape of A behind its rank: (in,) for linear layers, (vocabulary,) for
    embeddings, (in, kernel…) for convolutions. outputs: rows of B. dtype: the wider one of the stored factors.
    """

    module: str
    kind: LowRankKind
    rank: int
    inputs: tuple[int, ...]
    outputs: int
    dtype: str

    @property
    def columns(self) -> int:
        """Columns of A as a matrix."""
        return math.prod(self.inputs)

    def fits(self, other: ModuleShape) -> bool:
        """Whether both update the same weight; ranks and dtypes may differ."""
        return (self.kind, self.inputs, self.outputs) == (other.kind, other.inputs, other.outputs)


@dataclass(frozen=True)
class LowRankModule:
    """dW = scale * b @ a; a (r, columns), b (outputs, r), both float32.

    An embedding is kept as PEFT stores it: dW is the transpose of what is added to the table (vocabulary, width).
    Of a convolution, dW is the kernel (out, in, kernel…) seen as a matrix of `outputs` rows. inputs: see ModuleShape;
    None if it is (columns,).
    """

    module: str
    kind: LowRankKind
    a: F32
    b: F32
    scale: float = 1.0
    inputs: tuple[int, ...] | None = None

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def stored_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of both factors in a file."""
        inputs = self.inputs or self.a.shape[1:]
        return (self.rank, *inputs), (self.b.shape[0], self.rank, *(1 for _ in inputs[1:]))
