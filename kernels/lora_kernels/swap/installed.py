"""What is resident in a model, with digests of its inputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

import msgspec

from lora_contract import canonical
from lora_contract.base import BaseFingerprint
from lora_kernels.checkpoint.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.merging.plan import OPERATION_VERSION


class InstalledAdapter(msgspec.Struct, frozen=True):
    """An adapter of a merge. digest: of its version, or of its two files (`digest_of_adapter`)."""

    digest: str
    weight: float


class Installed(msgspec.Struct, frozen=True):
    """The merge that the model's weights are, bit for bit. Equal values mean equal weights.

    Args:
        base: digest of the base.
        adapters: in the order of the merge; none for the base itself.
        dtype: of the model if it was loaded in another one than the files have; None if they agree.
        rounding, seed: see `lora_kernels.merging.plan_merge`. The base itself is not rounded by them.
        backend: what computed it; None for the base itself.
        processor: name of the GPU; None for others.
    """

    base: str
    adapters: tuple[InstalledAdapter, ...] = ()
    dtype: str | None = None
    rounding: str = "nearest"
    seed: int = 0
    backend: str | None = None
    processor: str | None = None
    operation_version: int = OPERATION_VERSION

    @property
    def digest(self) -> str:
        """One digest of all of it, `sha256:` and 64 hex digits."""
        return str(canonical.digest(msgspec.to_builtins(self)))


def digest_of_adapter(folder: str | os.PathLike[str]) -> str:
    """Digest of the canonical JSON of {path: sha256} of an adapter's config and weights. Raises RegistryError
    `not-found`."""
    with FolderSource(folder) as source:
        return str(canonical.digest(_hashes(source, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))))


def digest_of_base(base: BaseFingerprint, source: FolderSource) -> str:
    """Digest of a base's fingerprint with the hashes of its files, which are read whole."""
    return str(msgspec.structs.replace(base, files=_hashes(source, base.files)).digest)


def _hashes(source: FolderSource, paths: Iterable[str]) -> dict[str, str]:
    found = {}
    for path in sorted(paths):
        with open(os.dup(source.descriptor(path)), "rb") as file:
            file.seek(0)
            found[path] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    return found
