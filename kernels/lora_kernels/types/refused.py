"""The refusal of types that are not merged here, with the reason that the contract's table gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lora_contract.adapter.types import TYPES
from lora_contract.errors import RegistryError

REASONS: Final[Mapping[str, str]] = {name: kind.unmerged for name, kind in TYPES.items() if kind.unmerged is not None}
"""PEFT type -> the rest of the sentence "Merging ... is not possible: ...". A type is either here or has a room."""


def not_possible(peft_type: str) -> RegistryError:
    """What is refused is still stored, served and validated: only a merge is impossible, or not exact."""
    reason = REASONS.get(peft_type, "there is no exact form of it yet that needs nothing but the files")
    return RegistryError(
        "unsupported",
        f"Merging {peft_type} is not possible: {reason}. The adapter can still be stored, served and validated.",
        hint="Serve the adapter unmerged, with PEFT or an inference server that knows its type.",
        type=peft_type,
    )
