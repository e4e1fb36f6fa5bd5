"""Databases at the newest schema, copied from one that was migrated once."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from lora_registry import admin, settings
from lora_registry.db.engine import make_engine
from tests.support.postgres import fresh_database, template_database


def migrate(data: Path, url: str | None = None) -> None:
    """Bring a database to the newest schema, in this process. Without a URL it is the data folder's SQLite file."""
    admin.migrate(settings.load({}, data=data, database_url=url))


def sqlite_in(data: Path) -> Path:
    """The SQLite file of a data folder, at the newest schema."""
    file = data / "registry.sqlite3"
    if not file.exists():
        data.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_sqlite_template(), file)
    return file


@contextmanager
def migrated(server_url: str) -> Iterator[str]:
    """URL of a PostgreSQL database at the newest schema, dropped at the end."""
    with fresh_database(server_url, template=_postgres_template(server_url)) as url:
        yield url


@contextmanager
def unmigrated(database: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    """An empty database of a kind, for tests that migrate it themselves."""
    with ExitStack() as stack:
        url = f"sqlite:///{folder / 'unmigrated.sqlite3'}"
        if database == "postgresql":
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgres_server")))
        engine = make_engine(url)
        stack.callback(engine.dispose)
        yield engine


@functools.cache
def _sqlite_template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lora-reg-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    migrate(folder)
    return folder / "registry.sqlite3"


@functools.cache
def _postgres_template(server_url: str) -> str:
    return template_database(server_url, "registry", lambda url: migrate(Path(tempfile.gettempdir()), url))
