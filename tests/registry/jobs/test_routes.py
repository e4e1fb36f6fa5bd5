"""Jobs as callers see them: ids by prefix, inspections left out of lists, jobs that no worker can take."""

from __future__ import annotations

from typing import Any

from lora_registry.db.engine import make_engine
from lora_registry.jobs.engine import lease_store
from tests.registry.conftest import Sites
from tests.registry.site import Site, problem, push, unique


def _queued(site: Site, versions: int) -> list[dict[str, Any]]:
    """The views of the inspections of new versions; no worker takes them."""
    site.repository(versions)
    items: list[dict[str, Any]] = site.client.get("/api/v1/jobs", params={"limit": versions}).json()["items"]
    assert {item["kind"] for item in items} == {"inspect"}
    return items


def test_a_job_is_found_by_a_prefix_that_is_unique(site: Site) -> None:
    job = _queued(site, 1)[0]["id"]
    prefix = job[:-8]
    assert site.client.get(f"/api/v1/jobs/{prefix}").json()["id"] == job
    assert site.client.get(f"/api/v1/jobs/{prefix}/progress").json()["state"] == "queued"
    cancelled = site.client.post(f"/api/v1/jobs/{prefix}/cancel").json()
    assert (cancelled["id"], cancelled["state"]) == (job, "cancelled")
    again = site.client.post(f"/api/v1/jobs/{prefix}/retry").json()
    assert (again["id"], again["state"]) == (job, "queued")


def test_a_prefix_that_several_jobs_have_is_refused_and_names_up_to_five(site: Site) -> None:
    _queued(site, 6)
    detail = problem(site.client.get("/api/v1/jobs/inspect-"), "invalid-request")["detail"]
    assert detail.count("inspect-") == 6  # the prefix itself, and five jobs
    assert detail.endswith("and others.")
    for short in ("inspe", "insp%ct-", "inspect_"):
        problem(site.client.get(f"/api/v1/jobs/{short}"), "not-found")


def test_jobs_of_others_do_not_make_a_prefix_ambiguous(sites: Sites, database: str) -> None:
    site, homes = sites(database, auth="token"), (unique("one"), unique("two"))
    with site.connect(site.token("admin")) as root, site.connect(site.token("reader", homes[0])) as reader:
        for seed, home in enumerate(homes):
            files = {"data.jsonl": b'{"text": "seed %d"}\n' % seed}
            assert push(root, home, "texts", "dataset", files).status_code == 201
        (own,) = reader.get("/api/v1/jobs").json()["items"]
        assert reader.get("/api/v1/jobs/inspect").json()["id"] == own["id"]
        (other,) = [job for job in root.get("/api/v1/jobs").json()["items"] if homes[1] in job["title"]]
        problem(reader.get(f"/api/v1/jobs/{other['id'][:-2]}"), "not-found")
        problem(root.get("/api/v1/jobs/inspect"), "invalid-request")


def test_a_list_leaves_a_kind_out_if_asked(site: Site) -> None:
    _queued(site, 1)
    shown = site.client.get("/api/v1/jobs", params={"exclude_kind": "inspect", "limit": 1000}).json()["items"]
    assert "inspect" not in {item["kind"] for item in shown}
    assert "inspect" in {item["kind"] for item in site.client.get("/api/v1/jobs").json()["items"]}


def test_a_queued_job_says_that_no_worker_serves_its_queue(site: Site) -> None:
    job = _queued(site, 1)[0]
    assert job["waiting_for"] == "a worker that takes jobs from the queue cpu; none is running"
    engine = make_engine(site.database)
    try:
        claim = {"executor_id": "w", "instance": "one", "host": "h", "lease_seconds": 60}
        assert lease_store.claim(engine, queues="gpu", **claim)
        assert site.client.get(f"/api/v1/jobs/{job['id']}").json()["waiting_for"] is not None
        assert lease_store.claim(engine, queues="gpu,cpu", **claim)
        assert site.client.get(f"/api/v1/jobs/{job['id']}").json()["waiting_for"] is None
        lease_store.release(engine, executor_id="w", instance="one")
        assert site.client.post(f"/api/v1/jobs/{job['id']}/cancel").json()["waiting_for"] is None
    finally:
        engine.dispose()
