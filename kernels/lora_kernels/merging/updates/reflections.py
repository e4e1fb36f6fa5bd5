"""Rows reflected at several hyperplanes, one after the other: HRA."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lora_contract.errors import RegistryError
from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Inputs, Reach, Transform
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, F64


class Reflections(Transform):
    """W (I - U T U^T): the product of r reflections at the columns of U (in, r), T upper triangular (Schreiber and Van
    Loan, "A storage-efficient WY representation for products of Householder transformations", 1989). In float64."""

    reach: ClassVar[Reach] = "row"

    def __init__(self, u: F64, t: F64) -> None:
        self._u = u
        self._right = t @ u.T

    def apply(self, block: Block, values: F32) -> None:  # noqa: ARG002
        rows = values.astype(np.float64)
        rows -= (rows @ self._u) @ self._right
        np.copyto(values, rows, casting="same_kind")


def load(delta: Delta, inputs: Inputs) -> Reflections:
    """factors: u (in, r). options: orthogonal: columns are made orthogonal to those before them. Raises RegistryError
    `rejected` where a column has no direction."""
    factor = delta.factors["u"]
    u = inputs.reader.load(factor).astype(np.float64)
    orthogonal = bool(delta.options.get("orthogonal"))
    for column in range(u.shape[1]):
        if orthogonal:
            for before in range(column):
                u[:, column] -= (u[:, before] @ u[:, column]) * u[:, before]
        length = float(np.sqrt(u[:, column] @ u[:, column]))
        if length == 0:
            raise RegistryError(
                "rejected",
                f"{factor.name}: the column {column} has the length 0; there is no reflection at it.",
                hint="Train it again or take an earlier checkpoint.",
                tensor=factor.name,
            )
        u[:, column] /= length
    t = np.zeros((u.shape[1], u.shape[1]))
    for column in range(u.shape[1]):
        t[column, column] = 2
        if not orthogonal:
            t[:column, column] = -2 * (t[:column, :column] @ (u[:, :column].T @ u[:, column]))
    return Reflections(u, t)
