"""Every migration goes back and forth: the schema is then what the tables of the code say."""

from __future__ import annotations

from pathlib import Path

import pytest

from alembic import command
from lora_registry.db import migrate
from lora_registry.db.revision import NEWEST
from tests.support.databases import unmigrated


def test_every_migration_goes_back(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with unmigrated(database, tmp_path, request) as engine:
        migrate.upgrade(engine)
        assert migrate.difference(engine) == []
        config = migrate._config()
        for number in range(int(NEWEST) - 1, 0, -1):
            with engine.begin() as connection:
                config.attributes["connection"] = connection
                command.downgrade(config, f"{number:04}")
        migrate.upgrade(engine)
        assert migrate.difference(engine) == []
