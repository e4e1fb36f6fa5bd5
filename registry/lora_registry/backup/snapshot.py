"""One consistent copy of a database, and what it says about blobs."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, func
from sqlmodel import Session, col, select

from lora_registry.backup import postgres
from lora_registry.backup.document import Item
from lora_registry.db.dialect import database_now
from lora_registry.db.tables import AuditEvent, Blob, Version, VersionBlob
from lora_registry.keeping.store import place

_PREFIX: Final = "backup-"
_DAY: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An open snapshot. dump: its bytes, once. at: microseconds since the epoch, by the database's clock."""

    kind: Literal["sqlite", "postgresql"]
    session: Session
    dump: Callable[[], Iterator[bytes]]
    at: int

    @property
    def event(self) -> int:
        return self.session.exec(select(func.max(AuditEvent.id))).one() or 0

    @property
    def revision(self) -> str:
        return str(self.session.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one())


@contextmanager
def take(engine: Engine, scratch: Path) -> Iterator[Snapshot]:
    """Open a snapshot. scratch: a folder for a copy of a SQLite file."""
    if engine.dialect.name == "sqlite":
        with _of_sqlite(engine, scratch) as snapshot:
            yield snapshot
        return
    reading = engine.execution_options(isolation_level="REPEATABLE READ")
    with reading.connect() as connection, connection.begin():
        connection.execute(sa.text("SET TRANSACTION READ ONLY"))
        session = Session(bind=connection)
        yield Snapshot("postgresql", session, lambda: postgres.dump(connection), database_now(session))


@contextmanager
def _of_sqlite(engine: Engine, scratch: Path) -> Iterator[Snapshot]:
    _remove_old(scratch)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=scratch) as folder:
        file = Path(folder) / "database.sqlite3"
        target = sqlite3.connect(file)
        source = engine.raw_connection()
        try:
            # In one step: in several it would begin again with every commit of another process.
            source.driver_connection.backup(target)  # type: ignore[union-attr]
            target.execute("PRAGMA journal_mode=DELETE")
        finally:
            target.close()
            source.close()
        copied = create_engine(f"sqlite:///file:{file}?mode=ro&immutable=1&uri=true")
        try:
            with Session(copied) as session:
                yield Snapshot("sqlite", session, lambda: _chunks(file), database_now(session))
        finally:
            copied.dispose()


def needed(session: Session) -> Iterator[Item]:
    """The blobs that live versions need, in order of their names."""
    live = (
        select(VersionBlob.digest)
        .join(Version, col(Version.id) == col(VersionBlob.version_id))
        .where(col(Version.deleted_at).is_(None), col(VersionBlob.stored).is_(True))
    )
    query = select(Blob).where(col(Blob.digest).in_(live)).order_by(col(Blob.digest))
    for row in session.exec(query.execution_options(yield_per=1000)):
        yield place(row), row.size


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while chunk := opened.read(256 * 1024):
            yield chunk


def _remove_old(scratch: Path) -> None:
    """Remove copies that killed backups left."""
    for folder in scratch.glob(f"{_PREFIX}*"):
        if folder.is_dir() and folder.stat().st_mtime < time.time() - _DAY:
            shutil.rmtree(folder, ignore_errors=True)
