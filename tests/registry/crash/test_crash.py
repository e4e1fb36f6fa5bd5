"""kill -9 at every step of a commit, of a tag's move and of jobs: the old state or the new one, never half."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_registry.worker import scratch
from tests.registry.site import SHARED, Site, adapter_files, open_site, until
from tests.support.push import push

PUSH = {"tags": ["prod"], "message": "survivor"}
STEPS_OF_A_COMMIT = (
    "upload.stored",
    "upload.stored:2",
    "upload.recorded",
    "commit.checked",
    "commit.inserted",
    "commit.before",
    "commit.after",
)
STEPS_OF_A_MERGE = (
    "jobs.step.inputs.recorded",
    "jobs.step.plan.after",
    "jobs.child.merge model-00001-of-00002.safetensors.started",
    "jobs.step.merge model-00002-of-00002.safetensors.after",
    "jobs.step.judge.recorded",
    "jobs.transaction.commit.before",
    "commit.inserted",
    "jobs.transaction.commit.written",
    "jobs.transaction.committed",
)
STEPS_OF_A_RESIZE = (
    "jobs.step.inputs.recorded",
    "jobs.child.resize.started",
    "jobs.step.resize.after",
    "jobs.step.check.recorded",
    "jobs.transaction.commit.before",
    "commit.inserted",
    "jobs.transaction.commit.written",
    "jobs.transaction.committed",
)
ADAPTERS = {"adapters": [{"adapter": "ns/a"}]}
DERIVED: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "merge": ("/api/v1/merges", ADAPTERS, STEPS_OF_A_MERGE),
    "resize": ("/api/v1/resizes", {"adapter": "ns/a", "rank": 1}, STEPS_OF_A_RESIZE),
}
"""Path, body without the target, steps to be killed at. The other operations take the same steps as a resize."""


@pytest.fixture
def alone(database: str, tmp_path: Path, postgres_server: str) -> Iterator[Callable[..., Site]]:
    """A service of the test's own, to be killed."""
    opened = []

    def make(**extra: str) -> Site:
        extra = {"LORA_REG_LEASE_SECONDS": "3", **extra}
        context = open_site(database, tmp_path / "site", postgres_server, extra=extra)
        opened.append(context)
        return context.__enter__()

    yield make
    for context in opened:
        context.__exit__(None, None, None)


def whole(site: Site, path: str) -> int:
    """Check that every version of a repository can be read to its last byte; returns how many there are."""
    listed = site.client.get(f"{path}/versions")
    if listed.status_code == 404:
        return 0
    versions: list[dict[str, Any]] = listed.json()["items"]
    assert [version["number"] for version in versions] == list(range(len(versions), 0, -1))
    for version in versions:
        where = f"{path}/versions/v{version['number']}"
        manifest = site.client.get(f"{where}/manifest")
        assert "sha256:" + hashlib.sha256(manifest.content).hexdigest() == version["digest"]
        assert {layer["digest"] for layer in manifest.json()["layers"]} == {file["digest"] for file in version["files"]}
        for file in version["files"]:
            body = site.client.get(f"{where}/files/{file['path']}").content
            assert "sha256:" + hashlib.sha256(body).hexdigest() == file["digest"], file
    return len(versions)


def test_killed_at_every_step_of_a_commit(alone: Callable[..., Site]) -> None:
    site = alone()
    site.start()
    site.base()
    site.service.kill()
    path, files = "/api/v1/repositories/ns/crash", adapter_files(1)
    site.start(fault=STEPS_OF_A_COMMIT[0])
    for step, following in zip(STEPS_OF_A_COMMIT, [*STEPS_OF_A_COMMIT[1:], None], strict=True):
        with pytest.raises(httpx.TransportError):
            push(site.client, "ns", "crash", "adapter", files, base=f"{SHARED}/base", **PUSH)
        assert site.service.process.wait(10) == -9, step
        site.start(fault=following)
        versions = whole(site, path)
        assert versions == (step == "commit.after"), step
        events = [event["kind"] for event in site.events("ns/crash")]
        tags = site.client.get(f"{path}/tags")
        jobs = [job["title"] for job in site.client.get("/api/v1/jobs").json()["items"]]
        if versions:
            assert [kind for kind in events if kind != "report-made"] == [
                "repository-created",
                "version-committed",
                "tag-moved",
            ]
            assert [(tag["tag"], tag["version"]["number"]) for tag in tags.json()["items"]] == [("prod", 1)]
            assert jobs.count("inspect ns/crash:v1") == 1
        else:
            assert (events, tags.status_code, jobs.count("inspect ns/crash:v1")) == ([], 404, 0), step
        assert whole(site, f"/api/v1/repositories/{SHARED}/base") == 1
    again = push(site.client, "ns", "crash", "adapter", files, base=f"{SHARED}/base", **PUSH)
    assert (again.status_code, again.json()["created"], again.json()["version"]["number"]) == (200, False, 1)
    assert whole(site, path) == 1
    assert "All blobs match their digests." in site.run("fsck")


def test_killed_around_the_move_of_a_tag(alone: Callable[..., Site]) -> None:
    site = alone()
    site.start()
    site.base()
    site.pushed("ns", "crash", 1, tags=["prod"])
    site.pushed("ns", "crash", 2)
    site.service.kill()
    path = "/api/v1/repositories/ns/crash"
    site.start(fault="tag.before-commit")
    for following, expected in (("tag.after-commit", (1, [1])), (None, (2, [2, 1]))):
        with pytest.raises(httpx.TransportError):
            site.client.put(f"{path}/tags/prod", json={"target": "v2"}, headers={"If-Match": '"gen-1"'})
        assert site.service.process.wait(10) == -9
        site.start(fault=following)
        tag = site.client.get(f"{path}/tags/prod").json()
        history = site.client.get(f"{path}/history").json()["items"]
        assert (tag["version"]["number"], [move["generation"] for move in history]) == expected
        moved = [event for event in site.events("ns/crash") if event["kind"] == "tag-moved"]
        assert len(moved) == len(history)


def left_in_working_folders(site: Site) -> list[Path]:
    return list((site.data / scratch.NAME).glob("*"))


@pytest.mark.parametrize("operation", DERIVED)
def test_a_job_whose_workers_are_killed_at_every_step_makes_one_version(
    alone: Callable[..., Site], tmp_path: Path, operation: str
) -> None:
    """The worker of `serve` on SQLite, and one separate worker after the other on PostgreSQL."""
    path, body, steps = DERIVED[operation]
    marks = tmp_path / "struck"
    marks.mkdir()
    site = alone(LORA_REG_FAULT_ONCE=str(marks))
    site.start()
    site.base()
    site.pushed("ns", "a", 1)
    asked = {**body, "to": "ns/made", "tags": ["fresh"]}
    if site.sqlite:
        settled = [event["kind"] for event in site.events("ns/a")]
        until(lambda: "report-made" in [event["kind"] for event in site.events("ns/a")], what=lambda: str(settled))
        site.service.stop()
        site.start(fault=",".join(steps))
    answer = site.client.post(path, json=asked)
    assert answer.status_code == 202, answer.text
    if not site.sqlite:
        for _ in steps:
            assert site.worker(fault=",".join(steps)).wait(60) == -9, site.talk()
        site.worker()
    job = site.until_job(answer.json()["id"], seconds=150)
    assert job["state"] == "done", (job["error"], site.talk())
    assert {mark.name for mark in marks.iterdir()} == set(steps)
    assert whole(site, "/api/v1/repositories/ns/made") == 1
    assert job["result"]["number"] == 1
    view = site.client.get("/api/v1/repositories/ns/made/versions/fresh").json()
    assert view["recipe"]["digest"] == job["recipe"]["digest"]
    assert left_in_working_folders(site) == []
    kinds = [event["kind"] for event in site.events("ns/made")]
    assert (kinds.count("version-committed"), kinds.count("tag-moved")) == (1, 1)
    again = site.client.post(path, json=asked)
    assert (again.status_code, again.json()["id"], again.json()["result"]["number"]) == (200, job["id"], 1)


@pytest.mark.parametrize(("operation", "fault"), [("merge", "merge.piece"), ("resize", "derive.fetched")])
def test_a_job_whose_child_is_killed_fails_and_can_be_asked_for_again(
    alone: Callable[..., Site], tmp_path: Path, operation: str, fault: str
) -> None:
    path, body, _ = DERIVED[operation]
    marks = tmp_path / "struck"
    marks.mkdir()
    site = alone(LORA_REG_FAULT_ONCE=str(marks))
    site.start(fault=fault)
    site.base()
    site.pushed("ns", "a", 1)
    if not site.sqlite:
        site.worker(fault=fault)
    asked = {**body, "to": "ns/made"}
    job = site.until_job(site.client.post(path, json=asked).json()["id"])
    assert (job["state"], job["error_code"]) == ("failed", "job-failed")
    assert "SIGKILL" in job["error"]
    assert whole(site, "/api/v1/repositories/ns/made") == 0
    again = site.client.post(path, json=asked)
    assert (again.status_code, again.json()["id"]) == (202, job["id"])
    assert site.until_job(job["id"])["state"] == "done"
    assert whole(site, "/api/v1/repositories/ns/made") == 1
    assert left_in_working_folders(site) == []


def test_a_cancelled_job_makes_nothing_and_can_be_asked_for_again(alone: Callable[..., Site], tmp_path: Path) -> None:
    """Its child stands still in the middle of the work when the job is cancelled."""
    marks = tmp_path / "struck"
    marks.mkdir()
    site = alone(LORA_REG_FAULT_ONCE=str(marks))
    site.start(fault="derive.fetched@stop")
    site.base()
    site.pushed("ns", "a", 1)
    if not site.sqlite:
        site.worker(fault="derive.fetched@stop")
    asked = {**DERIVED["resize"][1], "to": "ns/made"}
    job = site.client.post("/api/v1/resizes", json=asked).json()["id"]
    until(lambda: [mark.name for mark in marks.iterdir()] == ["derive.fetched"], what=site.talk)
    assert len(left_in_working_folders(site)) == 1
    assert site.client.post(f"/api/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert whole(site, "/api/v1/repositories/ns/made") == 0
    assert site.client.post("/api/v1/resizes", json=asked).json()["id"] == job
    assert site.until_job(job)["state"] == "done"
    assert whole(site, "/api/v1/repositories/ns/made") == 1
    # The stopped child may have been alive when its successor looked; it is killed, and the worker sweeps now and then.
    until(lambda: scratch.sweep(site.data) == 0 and left_in_working_folders(site) == [], what=site.talk)
