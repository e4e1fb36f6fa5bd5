"""Upgrade a database to the newest schema."""

from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine
from sqlmodel import SQLModel

import lora_registry.db.tables  # noqa: F401  fills the metadata
from alembic import command


def _config() -> Config:
    package = Path(__file__).resolve().parents[1]
    packaged = package / "alembic"  # location in the wheel
    config = Config()
    config.set_main_option("script_location", str(packaged if packaged.is_dir() else package.parents[1] / "alembic"))
    return config


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Run the pending migrations up to `revision` in one transaction. Several processes may call this at once."""
    config = _config()
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7305617)")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def make_revision(engine: Engine, message: str) -> None:
    """Generate a migration for the difference between tables and database (for developers)."""
    config = _config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.revision(config, message, autogenerate=True, rev_id=None)


def difference(engine: Engine) -> list[object]:
    """Return the differences that `alembic check` would report; empty if tables and migrations agree."""
    config = _config()
    found: list[object] = []

    def compare(_revision: object, context: MigrationContext) -> list[object]:
        found.extend(compare_metadata(context, SQLModel.metadata))
        return []

    with engine.begin() as connection:
        config.attributes["connection"] = connection
        script = ScriptDirectory.from_config(config)
        with EnvironmentContext(config, script, fn=compare, dont_mutate=True):
            script.run_env()
    return found
