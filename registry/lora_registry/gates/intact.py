"""Check, before a tag moves, that the stored bytes are still those that were evaluated."""

from __future__ import annotations

from typing import Final

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.hashing import checked
from lora_registry.context import Context
from lora_registry.db.tables import VersionBlob
from lora_registry.gates.evaluation import GateInputs
from lora_registry.repositories import store

MAX_BASE_BYTES: Final = 256 << 20
"""Largest base, in bytes, that a promotion hashes; larger ones are hashed by each validation and by `fsck`."""


def check(ctx: Context, inputs: GateInputs) -> None:
    """Hash the stored bytes of the version, of the evaluation sets and of a small base. Raises `corrupt`."""
    sets = [version.id for version in inputs.sets.versions()]
    base = inputs.base.id
    with ctx.db.read() as session:
        files = store.files_of(session, [inputs.version.id, base, *sets])
    if sum(file.size for file in files[base]) > MAX_BASE_BYTES:
        del files[base]
    for file in (file for rows in files.values() for file in rows if file.stored):
        _read(ctx, file)


def _read(ctx: Context, file: VersionBlob) -> None:
    digest = Digest.parse(file.digest)
    try:
        for _ in checked(ctx.blobs.stream(digest), digest=digest, size=file.size):
            pass
    except RegistryError as error:
        if error.kind.retryable:
            raise
        raise RegistryError(
            "corrupt", f"{file.path} differs from what was pushed and evaluated: {error.detail} The tag was not moved."
        ) from error
