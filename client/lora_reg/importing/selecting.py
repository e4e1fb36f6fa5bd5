"""Which weights of a source's base are not taken."""

from __future__ import annotations

from collections.abc import Mapping

from lora_contract.adapter.files import ReadFile
from lora_contract.fingerprint import INDEX, weights_in_use


def unused_weights(sizes: Mapping[str, int], read: ReadFile) -> frozenset[str]:
    """The weight files of a base that transformers would not load. Raises `rejected` for an unreadable index."""
    used = weights_in_use(sizes, read)
    return frozenset(path for path in sizes if path.endswith((".safetensors", INDEX)) and path not in used)
