"""Backups of another schema than this version's: older ones are migrated, newer ones refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from lora_contract.errors import RegistryError
from lora_registry.backup import postgres, restore
from lora_registry.backup.document import Document, Part
from lora_registry.db import revision
from lora_registry.db.engine import make_engine
from lora_registry.db.migrate import upgrade
from lora_registry.jobs.engine import client as engine_client
from tests.support.postgres import fresh_database

OLD = "0003"
NOTHING = Part(size=0, sha256="")


def document(schema: str, kind: str = "postgresql") -> Document:
    return Document(
        id="x", at="", event=0, kind=kind, revision=schema, software="0.1.0", database=NOTHING, blobs=NOTHING,
        blob_count=0, blob_bytes=0,
    )  # fmt: skip


def test_an_older_schema_is_restored_and_migrated(postgres_server: str) -> None:
    with fresh_database(postgres_server) as old_url, fresh_database(postgres_server) as new_url:
        old, new = make_engine(old_url), make_engine(new_url)
        upgrade(old, OLD)
        engine_client.migrate(old_url)
        text = "a\tb\\c\n\\.\n" + "ü" * 300_000  # what COPY has to escape, in a line longer than any chunk
        with old.begin() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO event (kind, at, actor, namespace, subject, facts) "
                    "VALUES ('x', 1, 'me', 'ns', 'ns/a', :text)"
                ),
                {"text": text},
            )
        with old.connect() as connection:
            chunks = list(postgres.dump(connection))
        restore._check_target(document(OLD), new)
        restore._load_postgres(new, new_url, OLD, iter(chunks))
        upgrade(new)
        assert revision.is_current(new)
        with new.begin() as connection:
            assert connection.execute(sa.text("SELECT id, facts FROM event")).one() == (1, text)
            insert = "INSERT INTO event (kind, at, actor, namespace, subject, facts) VALUES ('x', 1, '', '', '', '')"
            assert connection.execute(sa.text(insert + " RETURNING id")).scalar_one() == 2
        # Cut anywhere, nothing of it is loaded.
        whole = b"".join(chunks)
        with fresh_database(postgres_server) as url:
            engine = make_engine(url)
            for end in (0, 100, whole.index(b"\n") + 1, len(whole) // 2, len(whole) - 3):
                with pytest.raises(RegistryError, match="backup"):
                    restore._load_postgres(engine, url, OLD, iter([whole[:end]]))
            restore._check_target(document(OLD), engine)
            engine.dispose()
        with pytest.raises(RegistryError, match="not empty"):
            restore._check_target(document(revision.NEWEST), new)
        with pytest.raises(RegistryError, match="has the older"):
            restore._check_target(document(OLD), new)
        old.dispose()
        new.dispose()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'x.sqlite3'}")
    with pytest.raises(RegistryError, match=r"9999.* up to " + revision.NEWEST):
        restore._check_target(document("9999", "sqlite"), engine)
    engine.dispose()
