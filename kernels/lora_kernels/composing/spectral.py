"""Methods on the products D_i, from the small core of their factors: no matrix of a weight's size is formed.

All in float64, rounded once at the end. For the formulas see the sources in the table of methods.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from lora_contract.errors import RegistryError
from lora_kernels.composing.elements import disjoint_mean, trim
from lora_kernels.composing.module import Compose, Composed, ComposeSettings, Summands, from_triplets
from lora_kernels.linalg.factored import product_svd
from lora_kernels.linalg.small_core import leading_product
from lora_kernels.numeric.dtypes import F64


def svd(summands: Summands, settings: ComposeSettings) -> Composed:
    found = leading_product(*_stacked(summands), settings.rank)
    return from_triplets(*found.leading, found.energy, settings.clamp)


def task_arithmetic(summands: Summands, settings: ComposeSettings) -> Composed:
    return _sum(summands, settings.scaling, settings.requested_rank)


def iso_c(summands: Summands, settings: ComposeSettings) -> Composed:
    found = leading_product(*_stacked(summands), settings.rank)
    left, singular, right = found.leading
    mean = np.full_like(singular, settings.scaling * singular.mean()) if len(singular) else singular
    composed = from_triplets(left, singular, right, found.energy)
    return composed._replace(b=(left * mean).astype(np.float32))


def model_stock(summands: Summands, settings: ComposeSettings) -> Composed:
    count = len(summands)
    left, right = _stacked(summands)
    # <D_i, D_j> is the sum of the products of B_i^T B_j and A_i A_j^T, element by element.
    edges = np.cumsum([0, *(summand.module.rank for summand in summands)])[:-1]
    products = (left.T @ left) * (right @ right.T)
    inner = np.add.reduceat(np.add.reduceat(products, edges, axis=0), edges, axis=1)
    norms = np.sqrt(np.maximum(inner.diagonal(), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.where(np.outer(norms, norms) > 0, inner / np.outer(norms, norms), 0.0)
    share = 1.0
    if count > 1:
        cosine = max(float(cosines[np.triu_indices(count, 1)].mean()), 0.0)
        share = count * cosine / (1 + (count - 1) * cosine)
    return _sum(summands, share / count, settings.requested_rank)


def tsv(summands: Summands, settings: ComposeSettings) -> Composed:
    """Replace the stacked singular vectors by the nearest orthogonal matrices (Procrustes)."""
    count = len(summands)
    if settings.rank < count:
        raise RegistryError(
            "invalid-request",
            f"tsv splits the rank {settings.rank} among the {count} adapters of {summands[0].module.module}.",
            hint=f"Request a rank of {count} or more.",
            parameter="rank",
        )
    lefts, singulars, rights = [], [], []
    energy = 0.0
    for index, summand in enumerate(summands):
        share = settings.rank // count + (index < settings.rank % count)
        found = leading_product(*_stacked([summand]), share)
        lefts.append(found.leading.left)
        singulars.append(found.leading.singular)
        rights.append(found.leading.right.T)
        energy += found.energy
    singular = np.concatenate(singulars)
    left, right = _nearest_orthogonal(np.hstack(lefts)), _nearest_orthogonal(np.hstack(rights))
    width = min(left.shape[1], right.shape[1])
    composed = from_triplets(left[:, :width], singular[:width], right[:, :width].T, energy)
    return composed._replace(b=(settings.scaling * left[:, :width] * singular[:width]).astype(np.float32))


def knots(summands: Summands, settings: ComposeSettings) -> Composed:
    """Weights apply to the sign election, on V; U and S are of the unweighted updates."""
    basis, core = np.linalg.qr(np.hstack([summand.module.b.astype(np.float64) for summand in summands]))
    edges = np.cumsum([0, *(summand.module.rank for summand in summands)])
    rows, cores = [], []
    for summand, start, stop in zip(summands, edges, edges[1:], strict=False):
        row_basis, lower = np.linalg.qr(summand.module.a.astype(np.float64).T)
        rows.append(row_basis.T)
        cores.append(summand.module.scale * core[:, start:stop] @ lower.T)
    u, singular, v = np.linalg.svd(np.hstack(cores), full_matrices=False)
    edges = np.cumsum([0, *(len(row) for row in rows)])
    shared = [
        (v[:, start:stop] @ row).astype(np.float32) for row, start, stop in zip(rows, edges, edges[1:], strict=False)
    ]
    values = [trim(value, settings.density) for value in shared]
    merged = disjoint_mean(values, [settings.scaling * summand.weight for summand in summands], settings.majority)
    found = leading_product(basis @ (u * singular), merged.astype(np.float64), settings.rank)
    return from_triplets(*found.leading, found.energy)


def _sum(summands: Summands, factor: float, rank: int | None) -> Composed:
    left, right = _stacked(summands)
    found = leading_product(left, factor * right, rank)
    return from_triplets(*found.leading, found.energy)


def _stacked(summands: Summands) -> tuple[F64, F64]:
    """B (out, k) and A (k, in) of sum w_i D_i, with the coefficients in A."""
    left = np.empty((summands[0].module.b.shape[0], sum(summand.module.rank for summand in summands)))
    right = np.empty((left.shape[1], summands[0].module.a.shape[1]))
    start = 0
    for summand in summands:
        stop = start + summand.module.rank
        left[:, start:stop] = summand.module.b
        np.multiply(summand.module.a, np.float64(summand.coefficient), out=right[start:stop])
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
