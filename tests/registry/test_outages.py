"""Databases and stores that go away under load and come back: clear answers meanwhile, and no hand afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.registry.keeping.shelves import Bucket, Folder, s3_environment, sha256
from tests.registry.site import SHARED, Site, adapter_files, open_site, problem, unique, until
from tests.support.command import Home
from tests.support.faults import FaultProxy
from tests.support.push import upload

QUICK = {"LORA_REG_GC_SECONDS": "1", "LORA_REG_GC_GRACE_SECONDS": "0.1"}


@contextmanager
def away(site: Site) -> Iterator[None]:
    """PostgreSQL without this database: its connections are ended, and new ones refused."""
    url = sa.make_url(site.database)
    server = sa.create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)

    def allow(allowed: bool) -> None:
        with server.connect() as connection:
            connection.execute(sa.text(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS {allowed}'))
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            connection.execute(sa.text(end), {"name": url.database})

    allow(False)
    try:
        yield
    finally:
        allow(True)


def merge(site: Site, name: str) -> str:
    request = {"adapters": [{"adapter": f"ns/{name}:v1"}], "to": f"ns/{name}-merged"}
    answer = site.client.post("/api/v1/merges", json=request)
    assert answer.status_code == 202, answer.text
    job: str = answer.json()["id"]
    return job


def test_a_database_that_restarts(tmp_path: Path, postgres_server: str) -> None:
    with open_site("postgresql", tmp_path / "site", postgres_server, extra=QUICK) as site:
        site.serve()
        worker = site.worker()
        site.need_base()
        name, gone = unique("r"), unique("r")
        site.pushed("ns", name)
        path = f"/api/v1/repositories/ns/{name}"
        # A worker that starts without a database ends, and whoever started it starts it again.
        until(lambda: "takes jobs from" in site.talk(), seconds=90, what=site.talk)
        job = merge(site, name)
        home = Home(tmp_path / "home", site.url)
        with away(site):
            begun = time.monotonic()
            while time.monotonic() < begun + 3:
                problem(site.client.get(f"{path}/versions/v1"), "unavailable")
                problem(site.push("ns", gone), "unavailable")
                problem(site.client.put(f"{path}/tags/prod", json={"target": "v1"}), "unavailable")
                problem(site.client.get(f"/api/v1/jobs/{job}"), "unavailable")
                problem(site.client.get("/readyz"), "unavailable")
                time.sleep(0.2)
            said = home.run("show", f"ns/{name}")
            assert said.status == 10
            assert "if it persists, check the service" in said.err
        site.pushed("ns", gone, seed=7)
        assert site.until_job(job)["state"] == "done"
        # Its housekeeping is there, too.
        weights = adapter_files(7)["adapter_model.safetensors"]
        assert site.client.delete(f"/api/v1/repositories/ns/{gone}").status_code == 204
        until(lambda: sha256(weights) not in str(Folder(site.data).objects()), seconds=60, what=site.talk)
        assert worker.poll() is None


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory, ministack_server: Any
) -> Iterator[tuple[Site, FaultProxy, Bucket]]:
    """A service whose store is behind a proxy."""
    folder = tmp_path_factory.mktemp("stored")
    prefix = unique("outage")
    with FaultProxy(int(ministack_server.http.rpartition(":")[2])) as proxy, ministack_server.credentials():
        extra = s3_environment(ministack_server, prefix) | {
            "LORA_REG_S3_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"
        }
        with open_site("sqlite", folder, "", extra=extra) as site:
            site.serve()
            site.worker()
            site.need_base()
            yield site, proxy, Bucket(ministack_server, prefix)


FAULTS: dict[str, dict[str, Any]] = {
    "500": {"answering": 500},
    "503": {"answering": 503},
    "cut": {"cutting": True},
    "refused": {"refusing": True, "cutting": True},
}


def strike(proxy: FaultProxy, fault: str) -> None:
    for name, value in FAULTS[fault].items():
        setattr(proxy, name, value)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_fails(fault: str, stored: tuple[Site, FaultProxy, Bucket], tmp_path: Path) -> None:
    site, proxy, bucket = stored
    name = unique("r")
    kept = site.pushed("ns", name, seed=len(name))
    path = f"/api/v1/repositories/ns/{name}"
    sent = upload(site.client, "ns", name, "adapter", adapter_files(99))
    assert sent.status_code == 201
    files = [{"path": p, "size": len(d), "digest": f"sha256:{sha256(d)}"} for p, d in adapter_files(99).items()]
    body = {"session": sent.json()["id"], "kind": "adapter", "files": files, "base": f"{SHARED}/base"}
    try:
        strike(proxy, fault)
        job = merge(site, name)
        problem(site.client.post(f"{path}/versions", json=body), "storage-unavailable")
        assert site.client.put(f"{path}/tags/prod", json={"target": "v1"}).status_code == 200
        if fault == "503":
            said = Home(tmp_path / "home", site.url).run("pull", f"ns/{name}", "-o", tmp_path / "out")
            assert (said.status, "hint" in said.err) == (10, True), said.err
    finally:
        proxy.reset()
    assert site.client.post(f"{path}/versions", json=body).status_code == 201
    assert site.until_job(job)["state"] == "done"
    answer = site.client.get(
        f"{path}/versions/v{kept['number']}/files/adapter_model.safetensors", follow_redirects=True
    )
    assert answer.status_code == 200
    assert sha256(answer.content) in str(bucket.objects())


def test_a_slow_store_that_fails_now_and_then(stored: tuple[Site, FaultProxy, Bucket]) -> None:
    """A tenth of its requests are answered with SlowDown, and the others late: what is acknowledged is there."""
    site, proxy, _ = stored
    name = unique("r")
    try:
        proxy.answering, proxy.share, proxy.delay = 503, 0.1, 0.01
        acknowledged = []
        for seed in range(4):
            try:
                answer = site.push("ns", name, seed=1000 + seed)
            except httpx.HTTPStatusError as error:  # of the store itself, by a presigned URL
                assert error.response.status_code == 503
                continue
            if answer.status_code != 201:
                problem(answer, "storage-unavailable")
                continue
            acknowledged.append((answer.json()["version"]["number"], 1000 + seed))
    finally:
        proxy.reset()
    assert [number for number, _ in acknowledged] == list(range(1, len(acknowledged) + 1))
    for number, seed in acknowledged:
        for file, data in adapter_files(seed).items():
            url = f"/api/v1/repositories/ns/{name}/versions/v{number}/files/{file}"
            assert site.client.get(url, follow_redirects=True).content == data
