"""Blobs of a service that was there before they had states."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from alembic import command
from lora_registry.db import migrate
from tests.registry.site import DATABASES
from tests.support.databases import unmigrated

ROWS = (
    "INSERT INTO repository (id, namespace, name, kind, next_number, created_at) VALUES (1, 'a', 'b', 'base', 2, 3)",
    (
        "INSERT INTO version (id, repository_id, number, digest, commit_id, manifest, manifest_config, size, weights_absent,"
        " meta, message, author, created_at) VALUES (1, 1, 1, 'sha256:v', 'c', '', '', 9, :yes, '{}', '', 'me', 3)"
    ),
    "INSERT INTO blob (digest, size, created_at) VALUES ('sha256:known', 4, 7)",
    (
        "INSERT INTO version_blob (version_id, path, digest, size, stored) VALUES (1, 'config.json', 'sha256:known', 4, :yes),"
        " (1, 'tokenizer.json', 'sha256:forgotten', 5, :yes), (1, 'model.safetensors', 'sha256:never', 6, :no)"
    ),
)


@pytest.mark.parametrize("database", DATABASES)
def test_every_file_has_a_blob_with_a_state(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with unmigrated(database, tmp_path, request) as engine:
        config = migrate._config()
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "0003")
            for statement in ROWS:
                values = {name: value for name, value in (("yes", True), ("no", False)) if f":{name}" in statement}
                connection.execute(sa.text(statement), values)
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        with engine.connect() as connection:
            found = connection.execute(
                sa.text("SELECT digest, size, state, life, verified_at FROM blob ORDER BY digest")
            )
            assert [tuple(row) for row in found] == [
                ("sha256:forgotten", 5, "ok", "", 0),
                ("sha256:known", 4, "ok", "", 0),
                ("sha256:never", 6, "absent", "", 0),
            ]
        with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO version_blob (version_id, path, digest, size, stored)"
                    " VALUES (1, 'x', 'sha256:unknown', 1, :no)"
                ),
                {"no": False},
            )
        assert migrate.difference(engine) == []
