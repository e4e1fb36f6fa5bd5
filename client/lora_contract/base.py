"""The base fingerprint: what is pinned when an adapter names its base.

Canonical JSON, so its digest is stable; the base version's manifest carries that digest as an annotation.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lora_contract import canonical, decoding
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError


class BaseTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of the base. start, end: byte offsets in `file`, header included."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int


class BaseFingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about a base that a check needs, except its weights.

    Args:
        config: the parsed config.json.
        tensors: sorted by name.
        files: `sha256:` digests by path.
        embedding_rows: rows of the input embedding; None if there is none.
        tied: the output layer shares the weight of the input embedding.
        tokenizer, chat_template: digests of their canonical content; None if the base ships none.
    """

    architecture: str
    model_type: str
    config: dict[str, Any]
    tensors: tuple[BaseTensor, ...]
    files: dict[str, str]
    embedding_rows: int | None
    tied: bool
    tokenizer: str | None
    chat_template: str | None
    schema: int = 1

    def to_bytes(self) -> bytes:
        return canonical.dumps(msgspec.to_builtins(self))

    @property
    def digest(self) -> Digest:
        return Digest.of(self.to_bytes())

    def by_name(self) -> dict[str, BaseTensor]:
        return {tensor.name: tensor for tensor in self.tensors}


MAX_FINGERPRINT_BYTES = 256 * 1024 * 1024
MAX_FINGERPRINT_VALUES = 8_000_000


def parse_fingerprint(data: bytes) -> BaseFingerprint:
    """Parse the bytes of a fingerprint. Raises RegistryError `rejected`."""
    document = canonical.loads_strict(
        data, what="The base fingerprint", max_bytes=MAX_FINGERPRINT_BYTES, max_values=MAX_FINGERPRINT_VALUES
    )
    try:
        return decoding.convert(document, BaseFingerprint)
    except msgspec.ValidationError as error:
        raise RegistryError("rejected", f"The base fingerprint is malformed: {error}.") from error
