"""Whether two models differ on the same records: an interval for the difference of their losses, paired by record.

The loss is a ratio, nats over tokens, and records are what was drawn, not tokens: those of a record go up and down
together. So the difference is a ratio estimator over records, its variance by the delta method (Cochran, Sampling
Techniques, 3rd ed., section 6.4), the interval by Student's t with one degree of freedom less than there are records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

import msgspec

from lora_contract.errors import RegistryError

LEVEL: Final = 0.95
FEWEST: Final = 8
"""Records. With fewer, the tails of the difference are anybody's guess and no interval is given."""


class Interval(msgspec.Struct, frozen=True):
    """A difference in nats per token, and where it lies with probability `level`. records: how many were paired."""

    mean: float
    low: float
    high: float
    records: int
    level: float = LEVEL


def paired(
    nats: Sequence[float], other: Sequence[float], tokens: Sequence[int], *, level: float = LEVEL
) -> Interval | None:
    """The loss of `nats` minus that of `other`, in nats per token; None for fewer than FEWEST records with tokens.

    nats, other: sums of -log p over the tokens of each record, of the same records in the same order. tokens: how many
    were predicted. Raises RegistryError `invalid-request` where the lengths differ or a sum is not finite.
    """
    if not len(nats) == len(other) == len(tokens):
        raise RegistryError(
            "invalid-request", f"{len(nats)} and {len(other)} losses are paired over {len(tokens)} records."
        )
    if not all(map(math.isfinite, (*nats, *other))):
        raise RegistryError("invalid-request", "A loss is not finite: there is nothing to compare.")
    pairs = [(a - b, count) for a, b, count in zip(nats, other, tokens, strict=True) if count > 0]
    if len(pairs) < FEWEST:
        return None
    total = math.fsum(count for _, count in pairs)
    mean = math.fsum(change for change, _ in pairs) / total
    squares = math.fsum((change - mean * count) ** 2 for change, count in pairs)
    error = math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / total
    reach = student(0.5 + level / 2, len(pairs) - 1) * error
    return Interval(mean, mean - reach, mean + reach, len(pairs), level)


def student(probability: float, freedom: int) -> float:
    """Quantile of Student's t, from the normal one by the expansion of Abramowitz and Stegun, 26.7.5: within 0.001 for
    `freedom` of 7 and more up to a probability of 0.995."""
    z, v = NormalDist().inv_cdf(probability), float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
