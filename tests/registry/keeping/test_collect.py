"""Garbage collection: what goes, what stays, and the races between collectors, pushes and deletions."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.keys import new_life
from lora_registry.context import Context
from lora_registry.keeping import store as kept
from lora_registry.keeping import tasks
from lora_registry.keeping.collect import Collected
from lora_registry.push import sessions
from lora_registry.runtime import clock
from tests.registry.keeping.shelves import Shelf, sha256, shelved
from tests.registry.site import SHARED, Site, adapter_files, problem, unique, until
from tests.support import service
from tests.support.forks import Forked
from tests.support.push import describe, push, upload

WEIGHTS = "adapter_model.safetensors"
API = "/api/v1/repositories/ns"


@pytest.fixture(scope="module", params=["sqlite-folder", "postgresql-folder"])
def shelf_site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_server: str
) -> Iterator[tuple[Site, Shelf]]:
    with shelved(request.param, tmp_path_factory.mktemp("collect"), postgres_server, None) as made:
        yield made


@pytest.fixture
def site(shelf_site: tuple[Site, Shelf]) -> Site:
    return shelf_site[0]


@pytest.fixture
def shelf(shelf_site: tuple[Site, Shelf]) -> Shelf:
    return shelf_site[1]


def context(site: Site) -> Context:
    assert site.thread is not None
    return site.thread.context


def collect(site: Site, grace: float = 0.0) -> Collected:
    done = tasks.collect_garbage(context(site), grace=grace)
    assert done is not None
    return done


def files_of(seed: int) -> dict[str, bytes]:
    return {**adapter_files(seed), "README.md": unique("text").encode()}


def pushed(site: Site, name: str, files: dict[str, bytes]) -> None:
    answer = push(site.client, "ns", name, "adapter", files, base=f"{SHARED}/base")
    assert answer.status_code == 201, answer.text


def commit_body(session: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {"session": session, "kind": "adapter", "files": describe(files), "base": f"{SHARED}/base"}


def execute(site: Site, statement: str, **values: Any) -> None:
    engine = sa.create_engine(site.database)
    with engine.begin() as connection:
        connection.execute(sa.text(statement), values)
    engine.dispose()


def whole(site: Site, name: str, files: dict[str, bytes], version: str = "v1") -> bool:
    return all(
        site.client.get(f"{API}/{name}/versions/{version}/files/{path}").content == data for path, data in files.items()
    )


def test_a_deleted_version_is_freed_after_the_grace_period(site: Site, shelf: Shelf) -> None:
    name, other, files = unique("gone"), unique("kept"), files_of(1)
    shared = {**files, "README.md": b"another text"}
    before = shelf.objects()
    pushed(site, name, files)
    pushed(site, other, shared)
    path = f"{API}/{name}/versions/v1"
    shown = site.client.get(f"{path}/deletion").json()
    readme = len(files["README.md"])
    assert (shown["versions"], shown["blobs"], shown["bytes"], shown["after_seconds"]) == (1, 1, readme, 86400.0)
    assert site.client.delete(path).status_code == 204
    for _ in range(2):
        assert collect(site, grace=3600).removed == 0
    assert shelf.read(files["README.md"]) is not None
    done = collect(site)
    assert (done.removed, done.removed_bytes, done.failed) == (1, readme, 0)
    assert shelf.read(files["README.md"]) is None
    assert whole(site, other, shared)
    assert site.client.get(path).status_code == 410
    (removed,) = [event for event in site.events("ns") if sha256(files["README.md"]) in str(event["facts"])]
    assert (removed["kind"], removed["facts"]["bytes"]) == ("blobs-removed", readme)
    assert site.client.delete(f"{API}/{other}").status_code == 204
    collect(site)
    assert shelf.objects() == before


def test_a_dry_run_and_the_command(site: Site, shelf: Shelf) -> None:
    name, files = unique("dry"), files_of(2)
    pushed(site, name, files)
    assert site.client.delete(f"{API}/{name}").status_code == 204
    objects = shelf.objects()
    assert "2 blobs would be condemned" in site.run("gc", "--dry-run").replace("3 blobs", "2 blobs")
    assert "0 blobs (0 bytes) removed." in site.run("gc", "--grace", "2h")
    assert "3 blobs" in site.run("gc", "--dry-run", "--grace", "0s")
    assert shelf.objects() == objects
    assert "3 blobs" in site.run("gc", "--grace", "0")
    assert shelf.objects().keys() < objects.keys()


def test_what_was_uploaded_and_never_committed_is_freed_when_the_session_ends(site: Site, shelf: Shelf) -> None:
    before = shelf.objects()
    files = files_of(3)
    session = upload(site.client, "ns", unique("never"), "adapter", files).json()["id"]
    collect(site)
    assert len(shelf.objects()) > len(before)
    execute(site, "UPDATE upload_session SET expires_at = 1 WHERE id = :id", id=session)
    assert sessions.sweep(context(site)) == 1
    collect(site)
    assert shelf.objects() == before


def test_a_what_a_client_was_told_it_need_not_send_stays_until_it_commits(site: Site) -> None:
    holder, name, files = unique("holder"), unique("told"), files_of(4)
    pushed(site, holder, files)
    opened = upload(site.client, "ns", name, "adapter", files).json()
    assert {blob["state"] for blob in opened["blobs"]} == {"present"}
    assert site.client.delete(f"{API}/{holder}").status_code == 204
    collect(site)
    collect(site)
    assert site.client.post(f"{API}/{name}/versions", json=commit_body(opened["id"], files)).status_code == 201
    collect(site)
    assert whole(site, name, files)


def test_b_a_session_that_expired_before_its_commit_is_of_no_use(site: Site, shelf: Shelf) -> None:
    name, files = unique("late"), files_of(5)
    session = upload(site.client, "ns", name, "adapter", files).json()["id"]
    execute(site, "UPDATE upload_session SET expires_at = 1 WHERE id = :id", id=session)
    path = f"/api/v1/uploads/{session}/blobs/sha256:{sha256(files[WEIGHTS])}"
    problem(site.client.put(path, content=files[WEIGHTS]), "not-found")
    problem(site.client.post(f"{API}/{name}/versions", json=commit_body(session, files)), "not-found")
    collect(site)
    assert shelf.read(files["README.md"]) is None
    pushed(site, name, files)
    assert whole(site, name, files)


def test_c_a_commit_that_is_sent_again_after_its_version_went(site: Site) -> None:
    name, other, files = unique("resent"), unique("resent"), files_of(6)
    session = upload(site.client, "ns", name, "adapter", files).json()["id"]
    assert site.client.post(f"{API}/{name}/versions", json=commit_body(session, files)).status_code == 201
    assert site.client.post(f"{API}/{other}/versions", json=commit_body(session, files)).status_code == 201
    for each in (name, other):
        assert site.client.delete(f"{API}/{each}/versions/v1").status_code == 204
    collect(site)
    problem(site.client.post(f"{API}/{name}/versions", json=commit_body(session, files)), "not-found")
    pushed(site, name, files)
    assert whole(site, name, files, "v2")


class Collector:
    """`lora-registry gc --grace 0` in a process that a fault point kills or stops."""

    def __init__(self, site: Site, fault: str) -> None:
        extra = {**site.extra, "LORA_REG_FAULT": fault}
        self.process = Forked(
            [sys.executable, "-m", "lora_registry.cli", "gc", "--grace", "0"],
            env=service.environment(site.data, extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def stopped(self) -> bool:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode in (0, 5), errors


@pytest.fixture
def frozen(site: Site) -> Iterator[Callable[[str], Collector]]:
    """Freeze a collector at a fault point; its lease is then free for another."""
    made: list[Collector] = []

    def freeze(point: str) -> Collector:
        made.append(Collector(site, f"{point}@stop"))
        until(made[-1].stopped)
        execute(site, "UPDATE task_lease SET expires_at = 0, holder = 'nobody'")
        return made[-1]

    yield freeze
    for collector in made:
        if collector.process.poll() is None:
            collector.process.kill()
            collector.process.communicate()
    execute(site, "UPDATE task_lease SET expires_at = 0")


@pytest.mark.parametrize("point", ["gc.due", "gc.deleting", "gc.object"])
def test_d_i_a_frozen_collector_does_not_remove_what_was_stored_again(
    site: Site, shelf: Shelf, frozen: Callable[[str], Collector], point: str
) -> None:
    """It has decided to remove a blob; before it goes on, others finish its work, and the same content is pushed."""
    holder, name, files = unique("holder"), unique("again"), files_of(7)
    pushed(site, holder, files)
    assert site.client.delete(f"{API}/{holder}").status_code == 204
    collector = frozen(point)
    pushed(site, name, files)
    collect(site)
    assert whole(site, name, files)
    collector.go_on()
    assert whole(site, name, files), sorted(shelf.objects())
    collect(site)
    assert whole(site, name, files)
    assert "All blobs match their digests." in site.run("fsck")


def test_d_who_refers_to_a_blob_waits_for_a_collector_that_holds_its_row(
    site: Site, frozen: Callable[[str], Collector]
) -> None:
    """Of the two that lock a blob's row, whoever comes second sees what the first one did."""
    if site.sqlite:
        pytest.skip("a frozen writer holds the whole file; its transactions are serial anyway")
    name, files = unique("second"), files_of(8)
    pushed(site, name, files)
    path = f"{API}/{name}/versions/v1"
    assert site.client.delete(path).status_code == 204
    collector = frozen("gc.locked")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(site.client.put, f"{path}/restoration")
        time.sleep(0.5)
        assert not answer.done()
        collector.go_on()
        problem(answer.result(), "deleted")
    pushed(site, name, files)
    assert whole(site, name, files, "v2")


@pytest.mark.parametrize("point", ["gc.locked", "gc.deleting", "gc.object", "gc.removed"])
def test_h_a_collector_that_dies_is_finished_by_the_next(site: Site, shelf: Shelf, point: str) -> None:
    collect(site)
    before = shelf.objects()
    name, files = unique("dies"), files_of(9)
    pushed(site, name, files)
    assert site.client.delete(f"{API}/{name}").status_code == 204
    collector = Collector(site, point)
    assert collector.process.wait(60) == -signal.SIGKILL
    collector.process.communicate()
    execute(site, "UPDATE task_lease SET expires_at = 0")
    collect(site)
    assert shelf.objects() == before
    pushed(site, name.replace("dies", "lives"), files)
    assert whole(site, name.replace("dies", "lives"), files)


def test_e_k_objects_without_a_row_go_only_after_a_long_time(
    site: Site, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job that has not committed yet, or that a restored database does not know."""
    ctx = context(site)
    data = unique("left").encode()
    where, size = ctx.blobs.put_unknown([data], life=new_life())
    for _ in range(2):
        execute(site, "UPDATE task_lease SET done_at = 0")
        collect(site)
    assert shelf.read(data) == data
    execute(site, "UPDATE orphan SET first_seen_at = 1")
    execute(site, "UPDATE task_lease SET done_at = 0")
    assert collect(site).orphans == 1
    assert shelf.read(data) is None
    # The job that wakes up now must not refer to it, even if it stores the bytes at the same address again.
    ctx.blobs.put([data], digest=where, size=size)
    with pytest.raises(RegistryError, match="were removed"), ctx.db.write() as session:
        kept.record(session, {where: size})
    execute(site, "UPDATE task_lease SET done_at = 0")
    assert collect(site).orphans == 1
    # A job that commits in time takes its object with it.
    again, _ = ctx.blobs.put_unknown([data], life=new_life())
    execute(site, "UPDATE task_lease SET done_at = 0")
    collect(site)
    with ctx.db.write() as session:
        kept.record(session, {again: size})
    execute(site, "UPDATE orphan SET first_seen_at = 1")
    execute(site, "UPDATE task_lease SET done_at = 0")
    assert collect(site, grace=3600).orphans == 0
    assert shelf.read(data) == data


def test_g_a_download_that_has_begun_ends_well(site: Site) -> None:
    name, files = unique("open"), {**files_of(10), "README.md": b"0123456789abcdef" * (1 << 18)}
    pushed(site, name, files)
    with site.client.stream("GET", f"{API}/{name}/versions/v1/files/README.md") as answer:
        chunks = answer.iter_bytes()
        received = next(chunks)
        query = {"purge": "true", "reason": "secret"}
        assert site.client.delete(f"{API}/{name}/versions/v1", params=query).status_code == 204
        received += b"".join(chunks)
    assert received == files["README.md"]


def test_l_only_the_clock_of_the_database_counts(site: Site, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    name, files = unique("clock"), files_of(11)
    pushed(site, name, files)
    session = upload(site.client, "ns", unique("clock"), "adapter", files_of(12)).json()["id"]
    assert site.client.delete(f"{API}/{name}").status_code == 204
    real = clock.now
    monkeypatch.setattr("lora_registry.runtime.clock.now", lambda: real() + 48 * 3600 * 1_000_000)
    monkeypatch.setattr("time.time", lambda: real() / 1e6 + 48 * 3600)
    assert collect(site, grace=3600).removed == 0
    assert collect(site, grace=3600).removed == 0
    assert shelf.read(files["README.md"]) is not None
    assert site.client.get(f"/api/v1/uploads/{session}").status_code == 200
    assert site.client.delete(f"/api/v1/uploads/{session}").status_code == 204


def test_m_one_object_that_cannot_be_removed_does_not_stop_the_others(
    site: Site, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(site)
    before = shelf.objects()
    name, files = unique("bad"), files_of(13)
    pushed(site, name, files)
    assert site.client.delete(f"{API}/{name}").status_code == 204
    blobs = type(context(site).blobs)
    real, bad = blobs.delete, sha256(files["README.md"])

    def delete(self: Any, digest: Digest) -> None:
        if digest.hex == bad:
            raise RegistryError("storage-unavailable", "The disk is in pain.")
        real(self, digest)

    monkeypatch.setattr(blobs, "delete", delete)
    done = collect(site)
    assert done.failed == 1
    assert done.removed >= 1
    monkeypatch.undo()
    assert collect(site).removed == 1
    assert shelf.objects() == before


def test_n_a_version_is_restored_while_its_bytes_are_kept(site: Site) -> None:
    name, files = unique("back"), files_of(14)
    pushed(site, name, files)
    path = f"{API}/{name}/versions/v1"
    problem(site.client.put(f"{path}/restoration"), "conflict")
    assert site.client.delete(path).status_code == 204
    collect(site, grace=3600)
    restored = site.client.put(f"{path}/restoration")
    assert (restored.status_code, restored.json()["number"]) == (200, 1)
    collect(site)
    assert whole(site, name, files)
    assert "version-restored" in [event["kind"] for event in site.events(f"ns/{name}")]
    assert site.client.delete(path).status_code == 204
    collect(site)
    problem(site.client.put(f"{path}/restoration"), "deleted")
    pushed(site, name, files)
    problem(site.client.put(f"{path}/restoration"), "conflict")


def test_a_purge_frees_at_once_and_only_what_nobody_else_needs(site: Site, shelf: Shelf) -> None:
    name, other, files = unique("secret"), unique("other"), files_of(15)
    pushed(site, name, files)
    pushed(site, other, {**files, "README.md": b"clean"})
    path = f"{API}/{name}/versions/v1"
    problem(site.client.delete(path, params={"purge": "true"}), "invalid-request")
    problem(site.client.delete(path, params={"derived": "true", "reason": "x"}), "invalid-request")
    session = upload(site.client, "ns", unique("lease"), "adapter", files).json()
    assert {blob["state"] for blob in session["blobs"]} == {"present"}
    assert site.client.delete(path, params={"purge": "true", "reason": "a key"}).status_code == 204
    assert shelf.read(files["README.md"]) is None
    assert whole(site, other, {**files, "README.md": b"clean"})
    tombstone = problem(site.client.get(path), "deleted")
    assert "deleted" in tombstone["detail"]
    (event,) = [event for event in site.events(f"ns/{name}") if event["kind"] == "version-purged"]
    assert event["facts"]["reason"] == "a key"
    problem(site.client.post(f"{API}/{unique('lease')}/versions", json=commit_body(session["id"], files)), "not-found")


def test_a_purge_takes_derived_versions_only_if_asked(site: Site, shelf: Shelf) -> None:
    name, child, files, more = unique("licence"), unique("child"), files_of(16), files_of(17)
    pushed(site, name, files)
    answer = push(site.client, "ns", child, "adapter", more, base=f"{SHARED}/base", parents=[f"ns/{name}:v1"])
    assert answer.status_code == 201
    query = {"purge": "true", "reason": "withdrawn"}
    problem(site.client.delete(f"{API}/{name}/versions/v1", params=query), "in-use")
    query["derived"] = "true"
    site.client.put(f"{API}/{child}/tags/prod", json={"target": "v1"})
    problem(site.client.delete(f"{API}/{name}/versions/v1", params=query), "in-use")
    site.client.delete(f"{API}/{child}/tags/prod")
    assert site.client.delete(f"{API}/{name}/versions/v1", params=query).status_code == 204
    assert shelf.read(files[WEIGHTS]) is None
    assert shelf.read(more[WEIGHTS]) is None
    assert site.client.get(f"{API}/{child}/versions/v1").status_code == 410


def test_whatever_happens_live_versions_are_whole_and_the_store_holds_no_more(site: Site, shelf: Shelf) -> None:
    """A sequence of pushes, deletions, restorations, purges and collections; few contents, so that they meet."""
    random_ = random.Random(12)
    contents = [files_of(800 + number) for number in range(4)]
    contents += [{**contents[0], "README.md": contents[1]["README.md"]}]
    live: dict[tuple[str, int], dict[str, bytes]] = {}
    gone: dict[tuple[str, int], dict[str, bytes]] = {}
    names = [unique("chance") for _ in range(3)]
    collect(site)
    before = set(shelf.objects())
    for _ in range(60):
        step = random_.choice(["push", "push", "delete", "purge", "restore", "collect", "wait"])
        if step == "push":
            name, files = random_.choice(names), random_.choice(contents)
            answer = push(site.client, "ns", name, "adapter", files, base=f"{SHARED}/base")
            assert answer.status_code in (200, 201), answer.text
            live[name, answer.json()["version"]["number"]] = files
        elif step in ("delete", "purge") and live:
            key = random_.choice(sorted(live))
            query = {"purge": "true", "reason": "chance"} if step == "purge" else {}
            url = f"{API}/{key[0]}/versions/v{key[1]}"
            assert site.client.delete(url, params=query).status_code == 204
            gone[key] = live.pop(key)
        elif step == "restore" and gone:
            key = random_.choice(sorted(gone))
            answer = site.client.put(f"{API}/{key[0]}/versions/v{key[1]}/restoration")
            assert answer.status_code in (200, 409, 410), answer.text
            if answer.status_code == 200:
                live[key] = gone.pop(key)
        elif step in ("collect", "wait"):
            collect(site, grace=0.0 if step == "collect" else 3600.0)
    assert all(whole(site, name, files, f"v{number}") for (name, number), files in live.items())
    collect(site)
    assert all(whole(site, name, files, f"v{number}") for (name, number), files in live.items())
    needed = {sha256(data) for files in live.values() for data in files.values()}
    assert {name.partition(".")[0] for name in set(shelf.objects()) - before} <= needed
