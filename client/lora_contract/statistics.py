"""Confidence interval of the difference in loss between two models on the same records, paired by record.

The loss is a ratio of nats to tokens, and the sampling unit is the record, since the tokens of a record are correlated.
So the difference is a ratio estimator over records, with its variance by the delta method (Cochran, Sampling
Techniques, 3rd ed., section 6.4) and the interval by Student's t with one degree of freedom less than records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

import msgspec

from lora_contract.errors import RegistryError

LEVEL: Final = 0.95
MIN_RECORDS: Final = 8
"""With fewer records the tails of the difference are unknown, and there is no interval."""


class Interval(msgspec.Struct, frozen=True):
    """The confidence interval of a difference in nats per token. records: number of pairs."""

    mean: float
    low: float
    high: float
    records: int
    level: float = LEVEL


def paired_difference(
    nats: Sequence[float], other: Sequence[float], tokens: Sequence[int], *, level: float = LEVEL
) -> Interval | None:
    """The loss of `nats` minus that of `other`, in nats per token; None for fewer than MIN_RECORDS records with tokens.

    Raises RegistryError `invalid-request` if the lengths differ or a sum is not finite.

    Args:
        nats, other: sums of -log p over the tokens of each record, for the same records in the same order.
        tokens: number of predicted tokens of each record.
        level: confidence level.
    """
    if not len(nats) == len(other) == len(tokens):
        raise RegistryError(
            "invalid-request", f"Cannot pair {len(nats)} and {len(other)} losses over {len(tokens)} records."
        )
    if not all(map(math.isfinite, (*nats, *other))):
        raise RegistryError("invalid-request", "Losses that are not finite cannot be compared.")
    pairs = [(a - b, count) for a, b, count in zip(nats, other, tokens, strict=True) if count > 0]
    if len(pairs) < MIN_RECORDS:
        return None
    total = math.fsum(count for _, count in pairs)
    mean = math.fsum(change for change, _ in pairs) / total
    squares = math.fsum((change - mean * count) ** 2 for change, count in pairs)
    error = math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / total
    margin = student_t_quantile(0.5 + level / 2, len(pairs) - 1) * error
    return Interval(mean, mean - margin, mean + margin, len(pairs), level)


def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t for so many degrees of freedom, from the normal quantile by the expansion of Abramowitz
    and Stegun, 26.7.5: within 0.001 for 7 or more degrees up to a probability of 0.995."""
    z, v = NormalDist().inv_cdf(probability), float(degrees)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
