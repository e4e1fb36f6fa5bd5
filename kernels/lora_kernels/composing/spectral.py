"""Methods on the products D_i, from the small core of their factors: nothing of the size of a weight is made.

All in float64, rounded once at the end. Formulas: see the sources in the table of methods.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from lora_contract.errors import RegistryError
from lora_kernels.composing.elements import disjoint_mean, trim
from lora_kernels.composing.module import Compose, Composed, ComposeSettings, Parts, triplets_composed
from lora_kernels.linalg.factored import product_svd
from lora_kernels.linalg.small_core import leading_product
from lora_kernels.numeric.dtypes import F64


def svd(parts: Parts, settings: ComposeSettings) -> Composed:
    found = leading_product(*_stacked(parts), settings.rank)
    return triplets_composed(*found.leading, found.energy, settings.clamp)


def task_arithmetic(parts: Parts, settings: ComposeSettings) -> Composed:
    return _sum(parts, settings.scaling, settings.asked_rank)


def iso_c(parts: Parts, settings: ComposeSettings) -> Composed:
    found = leading_product(*_stacked(parts), settings.rank)
    left, singular, right = found.leading
    mean = np.full_like(singular, settings.scaling * singular.mean()) if len(singular) else singular
    composed = triplets_composed(left, singular, right, found.energy)
    return composed._replace(b=(left * mean).astype(np.float32))


def model_stock(parts: Parts, settings: ComposeSettings) -> Composed:
    count = len(parts)
    left, right = _stacked(parts)
    # <D_i, D_j> is the sum of the products of B_i^T B_j and A_i A_j^T, element by element.
    edges = np.cumsum([0, *(part.module.rank for part in parts)])[:-1]
    products = (left.T @ left) * (right @ right.T)
    inner = np.add.reduceat(np.add.reduceat(products, edges, axis=0), edges, axis=1)
    norms = np.sqrt(np.maximum(inner.diagonal(), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.where(np.outer(norms, norms) > 0, inner / np.outer(norms, norms), 0.0)
    share = 1.0
    if count > 1:
        cosine = max(float(cosines[np.triu_indices(count, 1)].mean()), 0.0)
        share = count * cosine / (1 + (count - 1) * cosine)
    return _sum(parts, share / count, settings.asked_rank)


def tsv(parts: Parts, settings: ComposeSettings) -> Composed:
    """The orthogonal matrices nearest to the stacked vectors (Procrustes) take their place."""
    count = len(parts)
    if settings.rank < count:
        raise RegistryError(
            "invalid-request",
            f"tsv shares the rank {settings.rank} among the {count} adapters of {parts[0].module.module}.",
            hint=f"Ask for a rank of {count} or more.",
            parameter="rank",
        )
    lefts, singulars, rights = [], [], []
    energy = 0.0
    for number, part in enumerate(parts):
        share = settings.rank // count + (number < settings.rank % count)
        found = leading_product(*_stacked([part]), share)
        lefts.append(found.leading.left)
        singulars.append(found.leading.singular)
        rights.append(found.leading.right.T)
        energy += found.energy
    singular = np.concatenate(singulars)
    left, right = _nearest_orthogonal(np.hstack(lefts)), _nearest_orthogonal(np.hstack(rights))
    width = min(left.shape[1], right.shape[1])
    composed = triplets_composed(left[:, :width], singular[:width], right[:, :width].T, energy)
    return composed._replace(b=(settings.scaling * left[:, :width] * singular[:width]).astype(np.float32))


def knots(parts: Parts, settings: ComposeSettings) -> Composed:
    """The weights are those of the vote, on V; S and U are of all updates as they were trained."""
    basis, core = np.linalg.qr(np.hstack([part.module.b.astype(np.float64) for part in parts]))
    edges = np.cumsum([0, *(part.module.rank for part in parts)])
    rows, cores = [], []
    for part, start, stop in zip(parts, edges, edges[1:], strict=False):
        row_basis, lower = np.linalg.qr(part.module.a.astype(np.float64).T)
        rows.append(row_basis.T)
        cores.append(part.module.scale * core[:, start:stop] @ lower.T)
    u, singular, v = np.linalg.svd(np.hstack(cores), full_matrices=False)
    edges = np.cumsum([0, *(len(row) for row in rows)])
    shared = [
        (v[:, start:stop] @ row).astype(np.float32) for row, start, stop in zip(rows, edges, edges[1:], strict=False)
    ]
    values = [trim(value, settings.density) for value in shared]
    merged = disjoint_mean(values, [settings.scaling * part.weight for part in parts], settings.majority)
    found = leading_product(basis @ (u * singular), merged.astype(np.float64), settings.rank)
    return triplets_composed(*found.leading, found.energy)


def _sum(parts: Parts, factor: float, rank: int | None) -> Composed:
    left, right = _stacked(parts)
    found = leading_product(left, factor * right, rank)
    return triplets_composed(*found.leading, found.energy)


def _stacked(parts: Parts) -> tuple[F64, F64]:
    """B (o, k) and A (k, i) of sum w_i D_i, the coefficients in A."""
    left = np.empty((parts[0].module.b.shape[0], sum(part.module.rank for part in parts)))
    right = np.empty((left.shape[1], parts[0].module.a.shape[1]))
    start = 0
    for part in parts:
        stop = start + part.module.rank
        left[:, start:stop] = part.module.b
        np.multiply(part.module.a, np.float64(part.coefficient), out=right[start:stop])
        start = stop
    return left, right


def _nearest_orthogonal(vectors: F64) -> F64:
    triplets = product_svd(vectors, np.eye(vectors.shape[1]))
    return triplets.left @ triplets.right


SPECTRAL: Final[dict[str, Compose]] = {
    "svd": svd,
    "task_arithmetic": task_arithmetic,
    "iso_c": iso_c,
    "model_stock": model_stock,
    "tsv": tsv,
    "knots": knots,
}
