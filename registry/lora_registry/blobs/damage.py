"""Name what is wrong with a stored blob: the same errors from the API, from jobs and from their child processes."""

from __future__ import annotations

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.hashing import checked
from lora_registry.blobs.protocols import BlobReader

HINT = "Push the same files again, which sends the damaged ones, or ask an administrator to run `lora-registry fsck`."


def verify(blobs: BlobReader, where: Digest, size: int, name: str) -> None:
    """Read a whole blob and compare it with its digest. Raises RegistryError as `damaged` says."""
    try:
        for _ in checked(blobs.stream(where), digest=where, size=size):
            pass
    except RegistryError as error:
        raise damaged(where, name, error) from error


def damaged(where: Digest, name: str, error: RegistryError) -> RegistryError:
    """Return `corrupt` for an error of a read that shows a damaged or missing blob, and any other error itself.

    name: of the file. The facts name the blob and its state, for whoever can mark its row.
    """
    match error.code:
        case "not-found":
            state, what = "missing", "is missing from the store"
        case "digest-mismatch" | "size-mismatch" | "corrupt":
            state, what = "damaged", "is damaged in the store"
        case _:
            return error
    if "blob" in error.facts:
        return error
    return known(where, name, state, what)


def known(where: Digest, name: str, state: str, what: str | None = None) -> RegistryError:
    """Return `corrupt` for a blob whose row has this state."""
    what = what or ("is missing from the store" if state == "missing" else "is damaged in the store")
    blob = {"digest": str(where), "life": getattr(where, "life", ""), "state": state}
    return RegistryError("corrupt", f"{name} ({where.short}) {what}.", hint=HINT, blob=blob)
