"""The largest singular value of a matrix in memory, by Lanczos on the Gram matrix of its smaller side.

Golub and Van Loan, "Matrix Computations", 4th edition, 10.1 and 10.3, with full reorthogonalization; the residual is
the stopping criterion. Products are float32, which is as exact as the matrix.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from lora_kernels.numeric import philox
from lora_kernels.numeric.dtypes import F32

# Relative to the eigenvalue, which is off by at most this, usually by its square.
RESIDUAL: Final = 1e-4
# Matrices of independent random numbers, whose largest singular values are close together, took 38 to 60 steps with
# sides of 1,000 to 4,096.
MAX_STEPS: Final = 96


def spectral_norm(values: F32, *, name: str) -> float | None:
    """The spectral norm of values (rows, columns), which are overwritten. name: key of the random start, so that the
    result does not depend on what else is measured. None if MAX_STEPS are not enough or a value is not finite."""
    largest = max(float(values.max()), -float(values.min())) if values.size else 0.0
    if largest == 0 or not np.isfinite(largest):
        return 0.0 if largest == 0 else None
    # Squares overflow or underflow float32 long before the values do.
    np.divide(values, np.float32(largest), out=values)
    tall = values if values.shape[0] >= values.shape[1] else values.T
    square = _largest_eigenvalue(tall, name)
    return None if square is None else largest * float(np.sqrt(square))


def _largest_eigenvalue(tall: F32, name: str) -> float | None:
    """The largest eigenvalue of tall.T @ tall."""
    side = tall.shape[1]
    steps = min(side, MAX_STEPS)
    start = philox.uniform(philox.stream_key(0, name), 0, side).astype(np.float64) - 0.5
    basis = np.empty((steps, side))
    basis[0] = start / np.linalg.norm(start)
    diagonal, off_diagonal = np.zeros(steps), np.zeros(steps)
    for step in range(steps):
        image = (tall.T @ (tall @ basis[step].astype(np.float32))).astype(np.float64)
        diagonal[step] = image @ basis[step]
        known = basis[: step + 1]
        for _ in range(2):
            image -= known.T @ (known @ image)
        off_diagonal[step] = np.linalg.norm(image)
        inner = np.diag(diagonal[: step + 1]) + np.diag(off_diagonal[:step], 1) + np.diag(off_diagonal[:step], -1)
        eigenvalues, vectors = np.linalg.eigh(inner)
        # The part of the Gram matrix times the approximate eigenvector that is orthogonal to the known directions. If
        # these are all directions, it is rounding.
        if step + 1 == side or off_diagonal[step] * abs(vectors[-1, -1]) <= RESIDUAL * eigenvalues[-1]:
            return max(float(eigenvalues[-1]), 0.0)
        if step + 1 < steps:
            basis[step + 1] = image / off_diagonal[step]
    return None
