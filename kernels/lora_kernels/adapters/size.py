"""Rank and dtype of new factors, as requested by a caller."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_contract.adapter.config import MAX_RANK
from lora_contract.errors import RegistryError
from lora_contract.tensors import DTYPE_NAMES


@dataclass(frozen=True)
class Size:
    """The rank of an adapter: the same for all modules, or for each module the smallest that keeps enough energy.

    keep_energy: the fraction of ||D||^2, above 0 and at most 1. max_rank: None for no limit. Raises RegistryError
    `invalid-request`.
    """

    rank: int | None = None
    keep_energy: float | None = None
    max_rank: int | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.keep_energy is None):
            raise _invalid("Give either a rank or the energy to keep.")
        if self.max_rank is not None and self.keep_energy is None:
            raise _invalid("A maximum rank is allowed only with the energy to keep, not with a rank.")
        for rank in (self.rank, self.max_rank):
            if rank is not None and not 1 <= rank <= MAX_RANK:
                raise _invalid(f"The rank is {rank}; expected 1 to {MAX_RANK}.")
        if self.keep_energy is not None and not (math.isfinite(self.keep_energy) and 0 < self.keep_energy <= 1):
            raise _invalid(f"The energy to keep is {self.keep_energy}; expected above 0 and at most 1, such as 0.9.")


def stored_dtype(dtype: str) -> str:
    """The safetensors name of a dtype: F32 for `float32`. Raises RegistryError `invalid-request`."""
    if dtype not in DTYPE_NAMES:
        raise _invalid(f"The dtype of the factors is {dtype!r}; expected one of {', '.join(DTYPE_NAMES)}.")
    return DTYPE_NAMES[dtype]


def _invalid(message: str) -> RegistryError:
    return RegistryError("invalid-request", message)
