"""Every migration goes back and forth: the schema is then what the tables of the code say."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from alembic import command
from lora_registry.db import migrate
from lora_registry.db.engine import make_engine
from lora_registry.db.revision import NEWEST
from tests.support.postgres import fresh_database


def test_every_migration_goes_back(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path / 'registry.sqlite3'}"
        if database == "postgresql":
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgres_server")))
        engine = make_engine(url)
        stack.callback(engine.dispose)
        migrate.upgrade(engine)
        assert migrate.difference(engine) == []
        config = migrate._config()
        for number in range(int(NEWEST) - 1, 0, -1):
            with engine.begin() as connection:
                config.attributes["connection"] = connection
                command.downgrade(config, f"{number:04}")
        migrate.upgrade(engine)
        assert migrate.difference(engine) == []
