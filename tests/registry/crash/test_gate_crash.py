"""kill -9 around validations and promotions: one report, and the tag where it was or where it was promoted to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.registry.crash.test_crash import alone, left_in_working_folders  # noqa: F401  (a fixture)
from tests.registry.site import Site, until
from tests.support.adapters import read_folder
from tests.support.command import ALIAS, TINY
from tests.support.push import push

STEPS = (
    "jobs.step.inputs.recorded",
    "jobs.child.measure.started",
    "jobs.step.measure.recorded",
    "jobs.transaction.report.before",
    "jobs.transaction.report.written",
    "jobs.transaction.committed",
)
REPO = "/api/v1/repositories/ns/queries"
BODY = {"version": "v1", "tag": "prod"}


def test_killed_everywhere_from_the_gate_to_the_tag(
    alone: Callable[..., Site],  # noqa: F811
    tmp_path: Path,
) -> None:
    marks = tmp_path / "struck"
    marks.mkdir()
    site = alone(LORA_REG_FAULT_ONCE=str(marks))
    site.start()
    site.need_worker()
    assert push(site.client, "ns", "tiny", "base", read_folder(TINY / "base"), aliases=[ALIAS]).status_code == 201
    adapter = read_folder(TINY / "adapters" / "queries-v1")
    made = push(site.client, "ns", "queries", "adapter", adapter, base="ns/tiny")
    site.until_job(made.json()["job"])
    until(lambda: all(job["state"] == "done" for job in site.client.get("/api/v1/jobs").json()["items"]))
    for worker in site.workers:
        worker.kill()
        worker.wait()
    site.service.stop()

    site.start(fault=",".join(STEPS))
    pending = site.client.post(f"{REPO}/promotions", json=BODY)
    assert (pending.status_code, pending.json()["tag"]) == (202, None)
    (job,) = pending.json()["gate"]["jobs"]
    if not site.sqlite:
        for _ in STEPS:
            assert site.worker(fault=",".join(STEPS)).wait(90) == -9, site.talk()
        site.worker()
    ended = site.until_job(job["id"], seconds=200)
    assert ended["state"] == "done", (ended["error"], site.talk())
    assert {mark.name for mark in marks.iterdir()} == set(STEPS)
    reports = site.client.get(f"{REPO}/versions/v1/reports").json()["items"]
    assert [report["id"] for report in reports if report["kind"] == "validate"] == [job["id"]]
    assert left_in_working_folders(site) == []
    site.service.kill()

    site.start(fault="promote.before-commit")
    for following, moved in (("promote.after-commit", False), (None, True)):
        with pytest.raises(httpx.TransportError):
            site.client.post(f"{REPO}/promotions", json=BODY)
        assert site.service.process.wait(10) == -9
        site.start(fault=following)
        assert site.client.get(f"{REPO}/tags/prod").status_code == (200 if moved else 404)
        assert kinds(site).count("gate-decided") == kinds(site).count("tag-moved") == int(moved)
    again: dict[str, Any] = site.client.post(f"{REPO}/promotions", json=BODY).json()
    assert (again["tag"]["generation"], kinds(site).count("tag-moved")) == (1, 1)


def kinds(site: Site) -> list[str]:
    return [event["kind"] for event in site.events("ns/queries")]
