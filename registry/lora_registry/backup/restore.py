"""Restore a backup: blobs first, read back and compared, then the database, in one step."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Engine
from sqlmodel import Session, SQLModel

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.backup import copying, place, postgres, snapshot
from lora_registry.backup.copying import Tell
from lora_registry.backup.document import DATABASE, Document, name_of
from lora_registry.backup.place import Place
from lora_registry.backup.take import blobs_of, fill, items, spool
from lora_registry.blobs.protocols import BlobStore
from lora_registry.db import revision
from lora_registry.db.engine import make_engine, require_connection
from lora_registry.db.migrate import upgrade
from lora_registry.jobs.engine import client as engine_client
from lora_registry.runtime.faults import fault_point
from lora_registry.settings import ServiceSettings


@dataclass(frozen=True, slots=True)
class Restored:
    """problems: blobs that live versions need and that are missing or damaged, with the reason."""

    document: Document
    verified: copying.Count
    problems: dict[str, str] = field(default_factory=dict)


def restore(
    settings: ServiceSettings,
    store: BlobStore,
    source: Place,
    *,
    backup_id: str | None,
    existing_store: bool,
    parallel: int,
    tell: Tell,
) -> Restored:
    """Restore a backup (None: the newest) into an empty database and an empty store.

    The database appears last and in one step, so an attempt that was killed can be repeated: blobs of the backup may be
    there already. existing_store: other blobs may be there too. Raises RegistryError `conflict` if the target is not
    empty, `usage` if its database is of another kind.
    """
    document = place.load(source, backup_id)
    url = settings.resolved_database_url
    settings.make_data_folder()
    engine = make_engine(url)
    require_connection(engine)
    try:
        _check_target(document, engine)
        if not existing_store:
            _require_empty(store, source, document)
        problems: dict[str, str] = {}

        def failed(where: Digest, error: RegistryError) -> None:
            problems.setdefault(name_of(where), error.detail)

        absent = copying.missing(blobs_of(source, document), store.list())
        copied = copying.copy(absent, source.blobs, store, parallel=parallel, failed=failed, tell=tell)
        tell(f"blobs: {copied.blobs} copied, {copied.bytes} bytes")
        verified = copying.verify(blobs_of(source, document), store, parallel=parallel, failed=failed, tell=tell)
        tell(f"blobs: {verified.blobs} verified")
        fault_point("restore.database")
        chunks = place.read_part(source, document.id, DATABASE, document.database)
        if document.kind == "sqlite":
            engine.dispose()
            _load_sqlite(Path(str(sa.make_url(url).database)), chunks)
        else:
            _load_postgres(engine, url, document.revision, chunks)
        upgrade(engine)
        engine_client.migrate(url)
        tell(f"database: as of {document.at}, event {document.event}")
        with spool(settings.data) as needed:
            with Session(engine.execution_options(read_only=True)) as session:
                fill(needed, snapshot.needed(session))
            needless = dict(problems)
            problems.clear()
            for where, _ in items(needed):
                if reason := needless.get(name_of(where)):
                    problems[name_of(where)] = reason
            for where, _ in copying.missing(items(needed), store.list()):
                problems.setdefault(name_of(where), "It is not in the backup.")
        return Restored(document, verified, problems)
    finally:
        engine.dispose()


def _check_target(document: Document, engine: Engine) -> None:
    if engine.dialect.name != document.kind:
        raise RegistryError(
            "usage",
            f"The backup is of a {document.kind} database; the target is {engine.dialect.name}.",
            hint="Set LORA_REG_DATABASE_URL to an empty database of the same kind.",
        )
    if document.revision > revision.NEWEST:
        raise RegistryError(
            "usage",
            f"The backup has the schema {document.revision}; this version knows schemas up to {revision.NEWEST}.",
            hint=f"Restore with lora-reg {document.software} or newer.",
        )
    inspector = sa.inspect(engine)
    existing = set(inspector.get_table_names())
    with engine.connect() as connection:
        if document.kind == "postgresql" and "alembic_version" in existing:
            schema = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            if schema is not None and schema > document.revision:
                raise RegistryError(
                    "conflict",
                    f"The database has the schema {schema}; the backup has the older {document.revision}.",
                    hint="Restore into a database without tables; they are made and migrated here.",
                )
        for table in SQLModel.metadata.sorted_tables:
            if table.name in existing and connection.execute(sa.text(f'SELECT 1 FROM "{table.name}" LIMIT 1')).first():
                raise RegistryError(
                    "conflict",
                    f"The database is not empty: the table {table.name} has rows.",
                    hint="Restore into a new database, or another folder with --data. If an attempt to restore was "
                    "interrupted at its very end, this is its result: run `lora-registry migrate` and `fsck`.",
                )


def _require_empty(store: BlobStore, source: Place, document: Document) -> None:
    """Refuse a store with blobs that are not in the backup."""
    foreign = copying.missing(store.list(), blobs_of(source, document))
    found = next(foreign, None)
    if found is not None:
        raise RegistryError(
            "conflict",
            f"The blob store is not empty: it has {name_of(found[0])[:20]}…, which is not in the backup.",
            hint="Restore into another folder or prefix; to keep what is there, add --existing-store.",
        )


def _load_sqlite(target: Path, chunks: Iterator[bytes]) -> None:
    """Put the file in the place of the empty one, in one step."""
    staged = target.with_name(f".{target.name}.restore")
    staged.unlink(missing_ok=True)
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        check = sqlite3.connect(staged)
        (answer,) = check.execute("PRAGMA quick_check").fetchone()
        check.close()
        if answer != "ok":
            raise RegistryError("corrupt", f"SQLite finds the copy of the database damaged: {answer}.")
        fault_point("restore.loaded")
        for suffix in ("-wal", "-shm"):
            target.with_name(target.name + suffix).unlink(missing_ok=True)
        staged.rename(target)
    finally:
        staged.unlink(missing_ok=True)


def _load_postgres(engine: Engine, url: str, schema: str, chunks: Iterator[bytes]) -> None:
    """Make the tables of the backup's schema, and fill them in one transaction."""
    upgrade(engine, schema)
    engine_client.migrate(url)
    with engine.begin() as connection:
        postgres.load(connection, chunks)
        fault_point("restore.loaded")
