"""Digests: `sha256:` followed by 64 lower-case hex digits, as OCI writes them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from lora_contract.errors import RegistryError

PREFIX: Final = "sha256:"
_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256 digest. hex: 64 lower-case hex digits; `str()` adds the algorithm."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.match(self.hex):
            raise RegistryError(
                "invalid-request", f"{self.hex[:80]!r} is not a SHA-256 digest of 64 lower-case hex digits."
            )

    def __str__(self) -> str:
        return PREFIX + self.hex

    @property
    def commit(self) -> str:
        """The first 40 hex digits, which Hub clients use as the commit id."""
        return self.hex[:40]

    @property
    def short(self) -> str:
        """The algorithm and twelve digits, for display."""
        return PREFIX + self.hex[:12]

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse `sha256:<64 hex>`. Raises RegistryError `invalid-request` for anything else."""
        if not text.startswith(PREFIX):
            raise RegistryError("invalid-request", f"{text[:80]!r} is not a digest; expected sha256:<64 hex digits>.")
        return cls(text[len(PREFIX) :])

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Digest:
        return cls(hashlib.sha256(data).hexdigest())
