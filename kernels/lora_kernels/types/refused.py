"""The refusal of types that are not merged, with the reason from the contract's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lora_contract.adapter.types import TYPES
from lora_contract.errors import RegistryError

REASONS: Final[Mapping[str, str]] = {name: kind.unmerged for name, kind in TYPES.items() if kind.unmerged is not None}
"""PEFT type -> the reason in "Merging ... is not possible: ...". A type either is here or has a room."""


def not_possible(peft_type: str) -> RegistryError:
    """The error for a type that cannot be merged, or not exactly; it can still be stored, served and validated."""
    reason = REASONS.get(peft_type, "no exact form of it is known that needs only the files")
    return RegistryError(
        "unsupported",
        f"Merging {peft_type} is not possible: {reason}. The adapter can still be stored, served and validated.",
        hint="Serve the adapter unmerged, with PEFT or an inference server that knows its type.",
        type=peft_type,
    )
