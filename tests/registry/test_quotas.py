"""What namespaces hold is counted with each commit and deletion, and never more than their quota."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.registry.conftest import Sites
from tests.registry.site import SHARED, Site, adapter_files, problem, unique
from tests.support.push import describe, push

SIZE = sum(len(data) for data in adapter_files(1).values())


@pytest.fixture
def site(sites: Sites, database: str) -> Iterator[Site]:
    found = sites(database)
    found.need_base()
    yield found


def usage(site: Site, namespace: str) -> dict[str, int | None]:
    found: dict[str, int | None] = site.client.get(f"/api/v1/namespaces/{namespace}").json()["usage"]
    return found


def limit(site: Site, namespace: str, **most: int) -> None:
    answer = site.client.put(f"/api/v1/namespaces/{namespace}/quota", json=most)
    assert answer.status_code == 200, answer.text
    assert most.items() <= answer.json()["usage"].items()


def test_commits_and_deletions_are_counted(site: Site) -> None:
    ns = unique("use")
    one, two = unique("one"), unique("two")
    for name, seed in ((one, 1), (one, 1), (one, 2), (two, 1)):  # the second is the same version again
        site.pushed(ns, name, seed)
    held = {"bytes": 3 * SIZE, "versions": 3, "max_bytes": None, "max_versions": None, "jobs": 0, "max_jobs": None}
    assert usage(site, ns) == held
    path = "/api/v1/repositories"
    assert site.client.delete(f"{path}/{ns}/{one}/versions/v1").status_code in (200, 204)
    assert usage(site, ns) == held | {"bytes": 2 * SIZE, "versions": 2}
    assert site.client.delete(f"{path}/{ns}/{two}").status_code in (200, 204)
    assert usage(site, ns) == held | {"bytes": SIZE, "versions": 1}


def test_more_than_the_quota_is_refused_before_and_after_its_bytes_are_sent(site: Site) -> None:
    ns, name = unique("full"), unique("a")
    site.pushed(ns, name, 1)
    limit(site, ns, max_bytes=2 * SIZE)
    site.pushed(ns, name, 2)
    files = adapter_files(93_007)  # which no other test has pushed: what a caller can read counts as sent
    announced = {"namespace": ns, "name": name, "kind": "adapter", "files": describe(files)}
    refused = problem(site.client.post("/api/v1/uploads", json=announced), "quota")
    assert f"{2 * SIZE} of at most {2 * SIZE} bytes" in refused["detail"]
    limit(site, ns, max_versions=2)
    assert "2 of at most 2 versions" in problem(site.client.post("/api/v1/uploads", json=announced), "quota")["detail"]
    # What is there already is no new version.
    site.pushed(ns, name, 2)
    assert site.client.delete(f"/api/v1/repositories/{ns}/{name}/versions/v1").status_code in (200, 204)
    site.pushed(ns, name, 93_007)


def test_concurrent_commits_do_not_exceed_it(site: Site) -> None:
    ns = unique("race")
    limit(site, ns, max_versions=3)
    names = [unique("r") for _ in range(8)]

    def send(name: str) -> int:
        with site.connect() as client:
            return push(client, ns, name, "adapter", adapter_files(1), base=f"{SHARED}/base").status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(send, names))
    assert sorted(statuses) == [201] * 3 + [403] * 5
    assert usage(site, ns)["versions"] == 3


def test_racing_submissions_and_retries_do_not_exceed_the_quota_of_jobs(site: Site) -> None:
    ns, name = unique("busy"), unique("a")
    site.pushed(ns, name, 1)
    limit(site, ns, max_jobs=5)

    def submit(target: str) -> httpx.Response:
        body = {"adapters": [{"adapter": f"{ns}/{name}"}], "to": f"{ns}/{target}"}
        with site.connect() as client:
            return client.post("/api/v1/merges", json=body)

    targets = [unique("t") for _ in range(32)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(submit, targets))
    taken = [target for target, answer in zip(targets, answers, strict=True) if answer.status_code == 202]
    assert len(taken) == 5
    refused = next(answer for answer in answers if answer.status_code != 202)
    body = problem(refused, "quota")
    assert body["detail"] == f"{ns} has 5 of at most 5 jobs queued or running at once."
    assert usage(site, ns)["jobs"] == 5
    assert submit(taken[0]).status_code == 202  # the same job again is no new one
    limit(site, ns, max_jobs=10)
    more = [submit(unique("t")).json()["id"] for _ in range(5)]
    for job in more:
        assert site.client.post(f"/api/v1/jobs/{job}/cancel").status_code == 200
    limit(site, ns, max_jobs=7)

    def retry(job: str) -> int:
        with site.connect() as client:
            return client.post(f"/api/v1/jobs/{job}/retry").status_code

    with ThreadPoolExecutor(5) as pool:
        assert sorted(pool.map(retry, more)) == [200, 200, 403, 403, 403]
    assert usage(site, ns)["jobs"] == 7
    site.pushed(ns, name, 2)  # an inspection is part of its push


def test_only_an_administrator_of_all_namespaces_sets_a_quota(sites: Sites) -> None:
    site, ns = sites("sqlite", auth="token"), unique("own")
    with site.connect(site.token("admin", ns)) as own, site.connect(site.token("admin")) as root:
        assert root.put(f"/api/v1/namespaces/{ns}", json={"visibility": "private"}).status_code == 200
        problem(own.put(f"/api/v1/namespaces/{ns}/quota", json={"max_versions": 9}), "forbidden")
        assert root.put(f"/api/v1/namespaces/{ns}/quota", json={"max_versions": 9}).status_code == 200
        assert own.get(f"/api/v1/namespaces/{ns}").json()["usage"]["max_versions"] == 9
        problem(root.put(f"/api/v1/namespaces/{ns}/quota", json={"max_versions": -1}), "invalid-request")
