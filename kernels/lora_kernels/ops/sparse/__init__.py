"""Shared code of TIES and DARE: sparse deltas, summed, or merged by a vote on the sign of each element.

The vote is that of TIES (Yadav et al., 2306.01708) as in PEFT 0.21's `utils/merge_utils.py`. The elected sign is that
of the sum of the adapters' trimmed deltas ("total"), or of the sum of their signs ("frequency"), both unweighted; it is
+ if the sum is zero. An adapter agrees if its delta has that sign. The result is the sum of the agreeing weighted
deltas over their number, 0 if none agrees, and NaN if the sum for the sign is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from lora_contract.errors import RegistryError
from lora_kernels.ops.low_rank import LowRank

MajoritySign = Literal["total", "frequency"]
MAX_ADAPTERS: Final = 2**15 - 1


def check_recipe(
    adapters: Sequence[LowRank], weights: Sequence[float], density: float, method: MajoritySign | None
) -> None:
    """Check the parameters. method: None for a plain sum. Raises RegistryError `invalid-request`."""
    if len(weights) != len(adapters):
        raise refused(f"There are {len(weights)} weights for {len(adapters)} adapters; expected one each.")
    if not 0 < density <= 1:
        raise refused(f"The density is {density}; expected more than 0 and at most 1.")
    if method not in (None, "total", "frequency"):
        raise refused(f"The majority sign method is `{method}`; expected `total` or `frequency`.")
    if len(adapters) > MAX_ADAPTERS:
        raise refused(f"There are {len(adapters)} adapters; expected at most {MAX_ADAPTERS}.")


def refused(message: str) -> RegistryError:
    return RegistryError("invalid-request", message, hint="Correct the parameters of the method.")
