"""Check, before a tag moves, that the stored bytes are still those that were evaluated."""

from __future__ import annotations

from typing import Final

from lora_contract.errors import RegistryError
from lora_registry.context import Context
from lora_registry.gates.evaluation import GateInputs
from lora_registry.keeping import reading

MAX_BASE_BYTES: Final = 256 << 20
"""Largest base, in bytes, that a promotion hashes; larger ones are hashed by each validation and by `fsck`."""


def check(ctx: Context, inputs: GateInputs) -> None:
    """Hash the stored bytes of the version, of the evaluation sets and of a small base. Raises `corrupt`."""
    sets = [version.id for version in inputs.sets.versions()]
    base = inputs.base.id
    with ctx.db.read() as session:
        files = reading.contents(session, [inputs.version.id, base, *sets])
    if sum(file.size for file in files[base].values()) > MAX_BASE_BYTES:
        del files[base]
    for file in (file for paths in files.values() for file in paths.values()):
        try:
            reading.verify(ctx, file)
        except RegistryError as error:
            if error.code != "corrupt":
                raise
            detail = f"{error.detail} It is not what was evaluated, so the tag was not moved."
            raise RegistryError("corrupt", detail, hint=error.hint, **error.facts) from error
