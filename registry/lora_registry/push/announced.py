"""What a caller announced in an upload session of their own."""

from __future__ import annotations

from sqlmodel import Session

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.auth.reading import absent
from lora_registry.db.dialect import database_now
from lora_registry.db.tables import UploadFile, UploadSessionRow
from lora_registry.keeping import store as kept
from lora_registry.push import store


def require_own(session: Session, principal: Principal, upload_id: str) -> UploadSessionRow:
    """Return the session. Raises `not-found` if it is not the caller's or has expired."""
    row = store.session_row(session, upload_id)
    if row is None or row.author != principal.name or not principal.may("writer", row.namespace):
        hint = "Push again: this opens a new session."
        raise absent(principal, f"There is no upload session {upload_id[:40]!r}.", hint=hint)
    if row.expires_at < database_now(session):
        raise RegistryError(
            "not-found", "The upload session has expired.", hint="Push again: this opens a new session."
        )
    return row


def require_announced(caller: Caller, upload_id: str, digest: Digest) -> tuple[UploadFile, Digest]:
    """Return what was announced, and the address at which its bytes are to be stored. Raises `not-found`."""
    with caller.ctx.db.read() as session:
        require_own(session, caller.principal, upload_id)
        row = store.file(session, upload_id, str(digest))
        where = kept.place_to_store(session, str(digest))
    if row is None:
        raise RegistryError("not-found", f"The upload session did not announce {digest.short}.")
    return row, where
