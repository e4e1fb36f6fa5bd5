"""HRA: W H, H a product of Householder reflections I - 2 u u^T, one per column u; with apply_GS the columns are
orthonormalized first. Source: peft 0.21.2 `HRALinear.get_delta_weight`, `HRAConv2d.merge`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, needed, shaped, target
from lora_kernels.types.matching.view import View, factor
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, Reach, Transform, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32, F64


class Reflected(UpdateSpec, frozen=True, tag="reflections"):
    """u: (in, r). orthogonal: orthogonalize each column against those before it."""

    u: Factor
    orthogonal: bool = False

    def load(self, inputs: Inputs) -> Reflections:
        u = inputs.wide(self.u)
        for column in range(u.shape[1]):
            if self.orthogonal:
                for before in range(column):
                    u[:, column] -= (u[:, before] @ u[:, column]) * u[:, before]
            norm = float(np.sqrt(u[:, column] @ u[:, column]))
            if norm == 0:
                raise RegistryError(
                    "rejected",
                    f"{self.u.name}: column {column} is zero and does not define a reflection.",
                    hint="Train the adapter again or use an earlier checkpoint.",
                    tensor=self.u.name,
                )
            u[:, column] /= norm
        t = np.zeros((u.shape[1], u.shape[1]))
        for column in range(u.shape[1]):
            t[column, column] = 2
            if not self.orthogonal:
                t[:column, column] = -2 * (t[:column, :column] @ (u[:, :column].T @ u[:, column]))
        return Reflections(u, t)


class Reflections(Transform):
    """W (I - U T U^T): the product of r reflections by the columns of U (in, r), T upper triangular (Schreiber and Van
    Loan, "A storage-efficient WY representation for products of Householder transformations", 1989). In float64."""

    reach: ClassVar[Reach] = "row"

    def __init__(self, u: F64, t: F64) -> None:
        self._u = u
        self._right = t @ u.T

    def apply(self, block: Block, values: F32) -> None:  # noqa: ARG002
        rows = values.astype(np.float64)
        rows -= (rows @ self._u) @ self._right
        np.copyto(values, rows, casting="same_kind")


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    orthogonal = view.config.raw.get("apply_GS") is True
    for group in groups:
        (u,) = needed(group, "hra_u")
        to = target(view, group, "linear", "conv")
        shaped(u, to.in_, view.scale(group.path).r)
        found.append(change(view, to, Reflected(factor(u), orthogonal)))
    return found


ROOM = Room(
    match,
    updates=(Reflected,),
    page=Page(
        "HRA",
        "changes: W ∏ (I − 2 u uᵀ), by the compact WY form; apply_GS",
        "row",
        "linear, Conv2d",
        "`HRALinear.get_delta_weight`",
    ),
)
