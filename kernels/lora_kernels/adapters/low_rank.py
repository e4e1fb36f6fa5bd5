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
    """The shape of a module's factors.

    rank: of the stored factors. inputs: the shape of A without the rank: (in,) for linear layers, (vocabulary,) for
    embeddings, (in, kernel…) for convolutions. outputs: rows of B. dtype: `widest` of the stored factors.
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

    For embeddings, dW is the transpose of the update of the table (vocabulary, width), as in PEFT. For convolutions, dW
    is the kernel (out, in, kernel…) viewed as a matrix of `outputs` rows. inputs: see ModuleShape; None for (columns,).
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
        """The shapes of A and B in a file."""
        inputs = self.inputs or self.a.shape[1:]
        return (self.rank, *inputs), (self.b.shape[0], self.rank, *(1 for _ in inputs[1:]))
