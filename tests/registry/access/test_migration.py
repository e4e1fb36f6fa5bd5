"""Tokens, namespaces and titles of jobs of a service that was there before rights had grants."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlmodel import Session

from alembic import command
from lora_contract.errors import RegistryError
from lora_contract.roles import Grant
from lora_registry.auth.tokens import hash_of, verify
from lora_registry.db import migrate
from tests.support.databases import unmigrated

BEFORE, CHANGE = "0005", "0006"
TITLES = {
    "inspect acme/sql:v1": "inspect acme/sql:v1",
    "validate acme/sql:v1 on acme/eval:v1, beta/eval:v2": "validate acme/sql:v1 on acme/eval:v1, (hidden)",
    "beta/x:prod + draft -> acme/m": "(hidden) + (hidden) -> acme/m",
    "diff beta/x:v1 acme/sql:v2": "diff (hidden) acme/sql:v2",
}


def _move(engine: sa.Engine, revision: str, *, down: bool = False) -> None:
    config = migrate._config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(config, revision)


def test_tokens_namespaces_and_titles(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with unmigrated(database, tmp_path, request) as engine:
        _move(engine, BEFORE)
        with engine.begin() as connection:
            for name, namespace, revoked in (("root", None, None), ("ci", "acme", None), ("gone", "acme", 7)):
                values = {"name": name, "hash": hash_of(name), "namespace": namespace, "revoked": revoked}
                connection.execute(
                    sa.text(
                        "INSERT INTO token (name, hash, role, namespace, created_at, revoked_at) "
                        "VALUES (:name, :hash, 'writer', :namespace, 5, :revoked)"
                    ),
                    values,
                )
            connection.execute(
                sa.text(
                    "INSERT INTO repository (namespace, name, kind, next_number, created_at) "
                    "VALUES ('acme', 'a', 'adapter', 1, 3), ('acme', 'b', 'adapter', 1, 2), ('beta', 'a', 'base', 1, 4)"
                )
            )
            for number, title in enumerate(TITLES):
                connection.execute(
                    sa.text(
                        "INSERT INTO job (id, kind, namespace, title, author, created_at) "
                        "VALUES (:id, 'x', 'acme', :title, 'ci', :at)"
                    ),
                    {"id": f"job-{number}", "title": title, "at": number},
                )
        _move(engine, CHANGE)
        _move(engine, BEFORE, down=True)
        with engine.begin() as connection:
            rows = connection.execute(sa.text("SELECT name, hash, role, namespace FROM token ORDER BY name")).all()
            assert [tuple(row) for row in rows] == [
                (name, hash_of(name), "writer", namespace)
                for name, namespace in (("ci", "acme"), ("gone", "acme"), ("root", None))
            ]
        _move(engine, "head")
        assert migrate.difference(engine) == []
        with Session(engine) as session:
            assert verify(session, "root").principal.grants == (Grant("*", "writer"),)
            assert verify(session, "ci").principal.grants == (Grant("acme", "writer"),)
            with pytest.raises(RegistryError, match="unknown, expired or revoked"):
                verify(session, "gone")
            namespaces = session.execute(sa.text("SELECT name, visibility, created_at FROM namespace ORDER BY name"))
            assert [tuple(row) for row in namespaces] == [("acme", "private", 2), ("beta", "private", 4)]
            titles = [row[0] for row in session.execute(sa.text("SELECT title FROM job ORDER BY created_at"))]
            assert titles == list(TITLES.values())
