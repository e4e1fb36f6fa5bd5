"""Mark blobs that were found damaged or missing: the row, an event for each namespace that needs it, a log line."""

from __future__ import annotations

import logging
from itertools import groupby

from sqlmodel import Session

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.auth.principals import WORKER
from lora_registry.blobs.damage import damaged
from lora_registry.blobs.keys import address
from lora_registry.context import Context
from lora_registry.events import audit
from lora_registry.keeping import store

log = logging.getLogger(__name__)


def found(ctx: Context, where: Digest, name: str, error: RegistryError) -> RegistryError:
    """Mark the blob of a failed read; return the error to raise instead. name: of the file."""
    refusal = damaged(where, name, error)
    mark_reported(ctx, refusal)
    return refusal


def mark_reported(ctx: Context, error: RegistryError) -> None:
    """Mark the blob that an error of `blobs.damage` names, if it names one."""
    blob: dict[str, str] | None = error.facts.get("blob")
    if error.code == "corrupt" and blob is not None:
        mark(ctx, place_of(blob), blob["state"])


def place_of(blob: dict[str, str]) -> Digest:
    """Return the address of a blob that an error names."""
    return address(Digest.parse(blob["digest"]), blob["life"])


def mark(ctx: Context, where: Digest, state: str) -> bool:
    """Set the state of a blob: `damaged`, `missing`, or `ok` once it was repaired. Return True if it changed."""
    with ctx.db.write() as session:
        changed = store.set_state(session, where, state)
        if changed:
            tell(session, str(where), state)
    if changed:
        log.log(logging.INFO if state == "ok" else logging.ERROR, "The blob %s is %s now.", where, state)
    return changed


def tell(session: Session, digest: str, state: str) -> None:
    """Record an event in each namespace that has a live version with this blob."""
    for namespace, rows in groupby(store.users(session, digest), key=lambda pair: pair[0].namespace):
        names = [f"{repo.label}:v{version.number}" for repo, version in rows]
        audit.record(
            session,
            "blob-repaired" if state == "ok" else f"blob-{state}",
            principal=WORKER,
            namespace=namespace,
            subject=names[0],
            digest=digest,
            versions=names[:20],
        )
