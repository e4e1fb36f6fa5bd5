"""Administration commands: schema, checks, tokens. Does not import the HTTP stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_contract.errors import RegistryError
from lora_contract.roles import Grant, Visibility
from lora_contract.wire.access import GrantsRequest, TokenView
from lora_registry.access import grants as token_grants
from lora_registry.access import namespaces, tokens
from lora_registry.auth.principals import OPERATOR
from lora_registry.backup import take
from lora_registry.backup.copying import Tell
from lora_registry.backup.document import Document
from lora_registry.backup.place import open_place
from lora_registry.backup.prune import prune
from lora_registry.context import Context
from lora_registry.db import revision
from lora_registry.db.engine import make_engine, require_connection
from lora_registry.jobs.engine import client as engine_client
from lora_registry.keeping import fsck as keeping_fsck
from lora_registry.keeping import records, tasks
from lora_registry.keeping.collect import Collected
from lora_registry.keeping.records import Kept
from lora_registry.push import sessions
from lora_registry.repositories import retention
from lora_registry.settings import ServiceSettings
from lora_registry.storage import open_blobs, s3_settings
from lora_registry.wiring import open_context

if TYPE_CHECKING:
    from lora_registry.backup.restore import Restored


def migrate(settings: ServiceSettings) -> None:
    """Migrate our tables, then those of the job engine."""
    settings.make_data_folder()
    engine = make_engine(settings.resolved_database_url)
    require_connection(engine)
    if not revision.is_current(engine):
        from lora_registry.db.migrate import upgrade

        upgrade(engine)
    engine.dispose()
    engine_client.migrate(settings.resolved_database_url)


def check(settings: ServiceSettings) -> Iterator[str]:
    """Yield one line per component that works. Raises RegistryError for the first that does not."""
    engine = open_checked(settings).db.engine
    yield f"database: {engine.url.render_as_string(hide_password=True)}, newest schema"
    open_blobs(settings).check()
    yield f"blobs: {settings.storage_url or settings.data.resolve()}"
    yield f"login: {settings.auth}"


def fsck(
    settings: ServiceSettings, *, repair: bool, sample: float, rate: float | None
) -> Iterator[keeping_fsck.Checked]:
    """Check the rows of blobs against the store, then the store against the rows. rate: in bytes per second."""
    ctx = open_checked(settings)
    yield from keeping_fsck.check_rows(ctx, sample=sample, rate=rate, repair=repair)
    yield from keeping_fsck.unnamed(ctx)


def gc(settings: ServiceSettings, *, dry_run: bool, grace: float | None) -> Collected:
    """Collect garbage now. grace: in seconds; None: as the settings say. Raises `conflict` if another process does."""
    ctx = open_checked(settings)
    if not dry_run:
        sessions.sweep(ctx)
        ctx.blobs.sweep(older_than=settings.upload_seconds + 3600)
        tasks.once(ctx, "retention", every=0.0, work=retention.apply)
    result = tasks.collect_garbage(ctx, grace=settings.gc_grace_seconds if grace is None else grace, dry_run=dry_run)
    if result is None:
        raise RegistryError("conflict", "Another process collects garbage now.", hint="Wait until it has ended.")
    return result


def keep_records(settings: ServiceSettings) -> Kept:
    """Export and remove old records now. Raises `conflict` if another process does."""
    done = tasks.keep_records(open_checked(settings))
    if done is None:
        raise RegistryError("conflict", "Another process exports records now.", hint="Wait until it has ended.")
    return done


def due_records(settings: ServiceSettings) -> dict[str, int]:
    """Count the records of each kind that would be exported and removed."""
    return records.due(open_checked(settings))


def backup(settings: ServiceSettings, destination: str, *, keep: int | None, parallel: int, tell: Tell) -> Document:
    """Back up database and blobs to a folder or `s3://bucket/prefix`. keep: remove older backups than so many."""
    ctx = open_checked(settings)
    store = settings.storage_url or str(settings.data)
    if "://" not in destination + store and Path(destination).resolve() == Path(store).resolve():
        raise RegistryError("usage", f"{destination} is the store itself.", hint="Name another folder.")
    if destination.rstrip("/") == store.rstrip("/"):
        raise RegistryError("usage", "The destination is the store itself.", hint="Name another bucket or prefix.")
    place = open_place(destination, s3_settings(settings), create=True)
    document = take.take(ctx, place, parallel=parallel, tell=tell)
    if keep is not None and not document.incomplete:
        prune(place, keep=keep, tell=tell)
    return document


def verify_backup(
    settings: ServiceSettings, source: str, *, backup_id: str | None, parallel: int, tell: Tell
) -> tuple[Document, dict[str, str]]:
    """Read a backup back; None: the newest. Returns what is missing or damaged, with the reason."""
    place = open_place(source, s3_settings(settings), create=False)
    return take.verify(place, backup_id, parallel=parallel, tell=tell)


def restore(
    settings: ServiceSettings,
    source: str,
    *,
    backup_id: str | None,
    existing_store: bool,
    parallel: int,
    tell: Tell,
) -> Restored:
    """Restore a backup into the empty database and store of the settings."""
    from lora_registry.backup.restore import restore as run  # imports alembic

    place = open_place(source, s3_settings(settings), create=False)
    return run(
        settings,
        open_blobs(settings),
        place,
        backup_id=backup_id,
        existing_store=existing_store,
        parallel=parallel,
        tell=tell,
    )


def create_token(
    settings: ServiceSettings, *, name: str, grants: Sequence[Grant], lifetime: float | None = None, note: str = ""
) -> str:
    """Create a token and return its secret, which is not stored. lifetime: seconds until it expires."""
    with open_checked(settings).db.write() as session:
        return tokens.create(session, OPERATOR, name, grants, lifetime=lifetime, note=note)


def list_tokens(settings: ServiceSettings) -> list[TokenView]:
    with open_checked(settings).db.read() as session:
        return tokens.list_all(session, OPERATOR, limit=None).items


def change_grants(settings: ServiceSettings, name: str, request: GrantsRequest) -> TokenView:
    """Add, remove or replace grants of a token."""
    with open_checked(settings).db.write() as session:
        return token_grants.change(session, OPERATOR, name, request)


def revoke_token(settings: ServiceSettings, name: str) -> None:
    with open_checked(settings).db.write() as session:
        tokens.revoke(session, OPERATOR, name)


def rotate_token(settings: ServiceSettings, name: str, *, overlap: float, lifetime: float | None) -> str:
    """Return the new secret. overlap: seconds for which the old one remains valid."""
    with open_checked(settings).db.write() as session:
        return tokens.rotate(session, OPERATOR, name, overlap=overlap, lifetime=lifetime)


def set_visibility(settings: ServiceSettings, name: str, visibility: Visibility) -> None:
    ctx = open_checked(settings)
    with ctx.db.write() as session:
        namespaces.set_visibility(session, ctx.jobs.rows, OPERATOR, name, visibility)


def open_checked(settings: ServiceSettings) -> Context:
    """Open the context; require a reachable database at the newest schema."""
    ctx = open_context(settings)
    require_connection(ctx.db.engine)
    revision.require_current(ctx.db.engine)
    return ctx
