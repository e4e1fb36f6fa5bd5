"""Garbage collections wait while a backup runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_registry import settings
from lora_registry.backup.holding import TASKS, collections_held
from lora_registry.keeping import lease, tasks
from lora_registry.wiring import open_context
from tests.registry.site import DATABASES
from tests.support.databases import migrated, sqlite_in


@pytest.mark.parametrize("database", DATABASES)
def test_no_collection_begins_during_a_backup(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    def check(url: str) -> None:
        ctx = open_context(settings.load({}, data=tmp_path, database_url=url))
        engine = ctx.db.engine
        with collections_held(engine):
            assert [lease.claim(engine, name) for name in TASKS] == [None, None]
            assert tasks.collect_garbage(ctx, grace=0) is None
        assert tasks.collect_garbage(ctx, grace=0) is not None
        running = lease.claim(engine, "gc")
        assert running is not None
        with collections_held(engine):  # one that runs already goes on
            assert running.renew()
        running.release(done=True)
        assert tasks.collect_garbage(ctx, grace=0) is not None
        ctx.jobs.close()
        engine.dispose()

    if database == "sqlite":
        check(f"sqlite:///{sqlite_in(tmp_path)}")
    else:
        with migrated(request.getfixturevalue("postgres_server")) as url:
            check(url)
