"""Processes whose clocks are ten minutes off, each in another direction: the database's clock decides."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import sqlalchemy as sa

from tests.registry.keeping.shelves import Folder, sha256
from tests.registry.site import SHARED, Site, adapter_files, open_site, until
from tests.support import service
from tests.support.push import describe, upload

SKEWED = Path(service.ROOT) / "tests" / "support" / "skewed"
MINUTES = 600


@contextmanager
def worker(site: Site, skew: float) -> Iterator[subprocess.Popen[bytes]]:
    environment = service.environment(site.data, site.extra)
    environment |= {"PYTHONPATH": f"{SKEWED}{os.pathsep}{environment['PYTHONPATH']}", "SKEW_SECONDS": str(skew)}
    with (site.data / f"skewed{skew}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lora_registry.cli", "worker", "--name", f"skewed{skew}"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_clocks_that_are_ten_minutes_off(tmp_path: Path, postgres_server: str) -> None:
    """Leases live as long as they are renewed, jobs run once, and nothing expires before its time."""
    extra = {"LORA_REG_GC_SECONDS": "1", "LORA_REG_GC_GRACE_SECONDS": "300"}
    with open_site("postgresql", tmp_path / "site", postgres_server, extra=extra) as site, ExitStack() as stack:
        site.serve()
        site.need_base()
        opened = upload(site.client, "ns", "late", "adapter", adapter_files(2))
        workers = [stack.enter_context(worker(site, skew)) for skew in (MINUTES, -MINUTES)]
        engine = sa.create_engine(site.database)
        stack.callback(engine.dispose)

        def rows(statement: str) -> list[str]:
            with engine.connect() as connection:
                return sorted(str(row[0]) for row in connection.execute(sa.text(statement)))

        holders = [f"skewed{-MINUTES}", f"skewed{MINUTES}"]
        until(lambda: rows("SELECT executor_id FROM worker_lease") == holders, seconds=90, what=site.talk)
        begun = rows("SELECT beat_at FROM worker_lease")
        jobs = []
        for seed in range(3):
            site.pushed("ns", f"r{seed}", seed=10 + seed)
            request = {"adapters": [{"adapter": f"ns/r{seed}:v1"}], "to": f"ns/m{seed}"}
            jobs.append(site.client.post("/api/v1/merges", json=request).json()["id"])
        gone = site.pushed("ns", "gone", seed=3)
        assert site.client.delete(f"/api/v1/repositories/ns/gone/versions/v{gone['number']}").status_code == 204
        for seed, job in enumerate(jobs):
            found = site.until_job(job)
            assert (found["state"], found["attempts"]) == ("done", 1)
            versions = site.client.get(f"/api/v1/repositories/ns/m{seed}/versions").json()["items"]
            assert [version["number"] for version in versions] == [1]
        # A collection by each of them, ten minutes before and after the time: the grace is of five.
        at = time.time()
        until(lambda: bool(rows(f"SELECT name FROM task_lease WHERE name = 'gc' AND done_at > {int((at + 2) * 1e6)}")))
        assert sha256(adapter_files(3)["adapter_model.safetensors"]) in str(Folder(site.data).objects())
        body = {"session": opened.json()["id"], "kind": "adapter", "files": describe(adapter_files(2))}
        answer = site.client.post("/api/v1/repositories/ns/late/versions", json={**body, "base": f"{SHARED}/base"})
        assert answer.status_code == 201, answer.text
        until(lambda: rows("SELECT beat_at FROM worker_lease")[0] > begun[-1], what=site.talk)  # both renewed theirs
        assert rows("SELECT executor_id FROM worker_lease") == holders
        assert [process.poll() for process in workers] == [None, None]
