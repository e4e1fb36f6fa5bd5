"""Old records are exported, then removed; what must outlive its time stays."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from lora_registry.blobs.files import Files
from lora_registry.context import Context
from lora_registry.keeping import records, tasks
from lora_registry.storage import open_records
from tests.registry.keeping.shelves import shelved
from tests.registry.site import Site, problem, refuses_changes, unique
from tests.support import service
from tests.support.forks import Forked

LONG_AGO = 1_600_000_000_000_000


@pytest.fixture(scope="module", params=["sqlite-folder", "postgresql-s3"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_server: str
) -> Iterator[Site]:
    s3 = request.getfixturevalue("ministack_server") if request.param.endswith("s3") else None
    with (
        s3.credentials() if s3 else nullcontext(),
        shelved(request.param, tmp_path_factory.mktemp("records"), postgres_server, s3) as (made, _),
    ):
        yield made


def context(site: Site) -> Context:
    assert site.thread is not None
    return site.thread.context


def keep(site: Site) -> records.Kept:
    done = tasks.keep_records(context(site))
    assert done is not None
    return done


def execute(site: Site, statement: str, **values: Any) -> list[Any]:
    engine = sa.create_engine(site.database)
    with engine.begin() as connection:
        result = connection.execute(sa.text(statement), values)
        found = list(result.all()) if result.returns_rows else []
    engine.dispose()
    return found


def engine_table(site: Site, name: str) -> str:
    return name if site.sqlite else f"dbos.{name}"


def lines(files: Files, folder: str) -> list[dict[str, Any]]:
    """Everything that was exported of a kind, in the order of the files."""
    data = b"".join(b"".join(files.read(name)) for name in files.names(f"{folder}/"))
    return [json.loads(line) for line in data.splitlines()]


def ids(found: list[dict[str, Any]]) -> list[Any]:
    return [line["id"] for line in found]


def decision(site: Site, version: int, report: str | None = None) -> int:
    statement = """
        INSERT INTO decision (version_id, tag, base_digest, policy_digest, report_id, sets, allowed, forced, reason, body,
        author, created_at) VALUES (:version, 'prod', 'sha256:b', 'sha256:p', :report, '{}', true, false, '', '{"a": 1}',
        'x', :at) RETURNING id"""
    return int(execute(site, statement, version=version, report=report, at=LONG_AGO)[0][0])


def report(site: Site, version: int, at: int = LONG_AGO) -> str:
    name = unique("validate")
    statement = """INSERT INTO report (id, kind, version_id, passed, body, created_at)
        VALUES (:id, 'validate', :version, true, '{}', :at)"""
    execute(site, statement, id=name, version=version, at=at)
    return name


def version_id(site: Site, pushed: dict[str, Any], name: str) -> int:
    statement = """SELECT v.id FROM version v JOIN repository r ON r.id = v.repository_id
        WHERE r.name = :name AND v.number = :number"""
    return int(execute(site, statement, name=name, number=pushed["number"])[0][0])


def ended_job(site: Site, name: str, seed: int) -> str:
    """The inspection of a new version, which was cancelled long ago."""
    answer = site.push("ns", name, seed)
    job: str = answer.json()["job"]
    assert site.client.post(f"/api/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    age(site, job)
    return job


def age(site: Site, job: str) -> None:
    status = engine_table(site, "workflow_status")
    execute(site, f"UPDATE {status} SET updated_at = :at WHERE workflow_uuid = :id", at=LONG_AGO // 1000, id=job)
    execute(site, "UPDATE job SET created_at = :at WHERE id = :id", at=LONG_AGO, id=job)


def test_decisions_and_reports_go_unless_something_refers_to_them(site: Site) -> None:
    name = unique("gated")
    first, gone = (version_id(site, site.pushed("ns", name, seed), name) for seed in (1, 2))
    assert site.client.put(f"/api/v1/repositories/ns/{name}/tags/prod", json={"target": "v1"}).status_code == 200
    named, superseded, newest, buried = (report(site, v) for v in (first, first, first, gone))
    later = report(site, first, LONG_AGO + 1)
    loose, moved, last = decision(site, first), decision(site, first, named), decision(site, first)
    execute(site, "UPDATE tag_move SET decision_id = :id WHERE to_version_id = :to", id=moved, to=first)
    execute(site, "UPDATE version SET deleted_at = :at WHERE id = :id", id=gone, at=LONG_AGO)
    assert {kind: records.due(context(site))[kind] for kind in ("decisions", "reports")} == {
        "decisions": 1,
        "reports": 3,
    }
    refuses_changes(
        site.database, f"delete from decision where id = {loose}", f"delete from report where id = '{buried}'"
    )
    keep(site)
    files = open_records(context(site).settings)
    (exported,) = lines(files, "decisions")
    assert (exported["id"], exported["body"], exported["created_at"]) == (loose, {"a": 1}, LONG_AGO)
    assert sorted(ids(lines(files, "reports"))) == sorted((superseded, newest, buried))
    assert [row[0] for row in execute(site, f"SELECT id FROM decision WHERE version_id = {first} ORDER BY id")] == [
        *(moved, last)
    ]
    stay = execute(site, f"SELECT id FROM report WHERE version_id IN ({first}, {gone})")
    assert {row[0] for row in stay} == {named, later}
    refuses_changes(
        site.database,
        *(f"delete from decision where id = {moved}", f"delete from report where id = '{later}'"),
        *("update decision set body = ''", "update report set body = ''"),
    )


def test_jobs_go_with_the_rows_of_the_engine_unless_a_live_version_was_made(site: Site) -> None:
    name = unique("inspected")
    old, maker = ended_job(site, name, 11), ended_job(site, name, 12)
    fresh = site.push("ns", name, 13).json()["job"]
    recipe = f"sha256:{unique('recipe')}"
    execute(site, "INSERT INTO recipe (digest, body, created_at) VALUES (:d, :b, 1)", d=recipe, b=b"{}")
    execute(site, "UPDATE job SET recipe_digest = :d WHERE id = :id", d=recipe, id=maker)
    execute(site, "UPDATE version SET recipe_digest = :d WHERE number = 2 AND id = (SELECT subject_version_id FROM job "
            "WHERE id = :id)", d=recipe, id=maker)  # fmt: skip
    for job in (old, maker):
        execute(
            site,
            f"""INSERT INTO {engine_table(site, "streams")} (workflow_uuid, key, value, "offset", function_id)
            VALUES (:id, 'progress', '1', 0, 0)""",
            id=job,
        )
    done = keep(site)
    files = open_records(context(site).settings)
    (exported,) = (line for line in lines(files, "jobs") if line["id"] in (old, maker, fresh))
    assert (exported["id"], exported["state"], exported["updated_at"]) == (old, "CANCELLED", LONG_AGO // 1000 * 1000)
    assert done.progress == 1  # that of the other went with it
    for table, key in (
        ("workflow_status", "workflow_uuid"),
        ("streams", "workflow_uuid"),
        ("workflow_input", "workflow_uuid"),
    ):
        found = execute(site, f"SELECT {key} FROM {engine_table(site, table)} WHERE {key} = :id", id=old)
        assert found == [], table
    problem(site.client.get(f"/api/v1/jobs/{old}"), "not-found")
    assert site.client.get(f"/api/v1/jobs/{maker}").json()["state"] == "cancelled"
    assert site.client.get(f"/api/v1/jobs/{maker}/progress").json()["items"] == []
    listed = [job["id"] for job in site.client.get("/api/v1/jobs", params={"limit": 1000}).json()["items"]]
    assert old not in listed
    assert {maker, fresh} <= set(listed)
    # A job that ended long ago and is restarted is no old one.
    assert site.client.post(f"/api/v1/jobs/{maker}/retry").json()["state"] == "queued"


def test_events_go_and_a_cursor_from_before_is_told(site: Site) -> None:
    name = unique("told")
    site.pushed("ns", name, 21)
    beginning = site.client.get("/api/v1/events", params={"limit": 2}).json()
    (bound,) = execute(site, "SELECT max(id) FROM event")[0]
    execute(site, "UPDATE event SET at = :at WHERE id <= :id", at=LONG_AGO, id=bound)
    end = site.client.get("/api/v1/events", params={"limit": 1000}).json()["next_cursor"]
    keep(site)
    assert execute(site, "SELECT id FROM event") == [(bound,)]  # whose id must not be given again
    exported = lines(open_records(context(site).settings), "events")
    assert ids(exported) == sorted(set(ids(exported)))
    assert ids(exported)[-1] < bound
    assert {line["kind"] for line in exported} >= {"version-committed"}
    body = problem(site.client.get("/api/v1/events", params={"after": beginning["next_cursor"]}), "expired")
    assert "Start again without a cursor" in body["hint"]
    site.client.put(f"/api/v1/repositories/ns/{name}/tags/prod", json={"target": "v1"})
    assert [e["kind"] for e in site.client.get("/api/v1/events").json()["items"]][-1] == "tag-moved"
    page = site.client.get("/api/v1/events", params={"after": end}).json()
    assert [event["kind"] for event in page["items"]] == ["tag-moved"]


def test_a_killed_export_loses_nothing_and_says_nothing_twice(site: Site) -> None:
    name = unique("killed")
    jobs = [ended_job(site, name, seed) for seed in (31, 32)]
    version = version_id(site, {"number": 1}, name)
    decisions = [decision(site, version) for _ in range(3)]
    files = open_records(context(site).settings)
    before = {kind: ids(lines(files, kind)) for kind in ("jobs", "decisions")}
    for point in ("records.planned", "records.written", "records.removed"):
        gc = Forked(
            [sys.executable, "-m", "lora_registry.cli", "gc"],
            env=service.environment(site.data, {**site.extra, "LORA_REG_FAULT": point}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        gc.communicate(timeout=120)
        assert gc.returncode == -signal.SIGKILL, point
        assert len(execute(site, f"SELECT id FROM decision WHERE id IN ({decisions[0]}, {decisions[1]})")) == 2
        execute(site, "UPDATE task_lease SET expires_at = 0 WHERE name = 'records'")
    assert "would be exported and removed" in site.run("gc", "--dry-run")
    assert "removed, exported to decisions/" in site.run("gc")
    after = {kind: ids(lines(files, kind)) for kind in ("jobs", "decisions")}
    assert sorted(after["jobs"]) == sorted(before["jobs"] + jobs)
    assert sorted(after["decisions"]) == sorted(before["decisions"] + decisions[:2])
    assert records.due(context(site)) == {"events": 0, "decisions": 0, "jobs": 0, "reports": 0}


def test_an_idempotency_key_is_forgotten_after_its_time(site: Site) -> None:
    name, key = unique("once"), {"Idempotency-Key": unique("key")}
    site.pushed("ns", name, 41)
    body = {"adapters": [{"adapter": f"ns/{name}"}], "to": f"ns/{unique('to')}"}
    other = {**body, "to": f"ns/{unique('to')}"}

    def send(data: dict[str, Any]) -> httpx.Response:
        return site.client.post("/api/v1/merges", json=data, headers=key)

    assert send(body).json()["id"] == send(body).json()["id"]
    problem(send(other), "idempotency-mismatch")
    execute(site, "UPDATE idempotency SET created_at = :at", at=LONG_AGO)
    assert send(other).status_code == 202  # the old one does not count, though it is not removed yet
    problem(send(body), "idempotency-mismatch")
    assert keep(site).idempotency == 0
    execute(site, "UPDATE idempotency SET created_at = :at", at=LONG_AGO)
    assert keep(site).idempotency == 1
