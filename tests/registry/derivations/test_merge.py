"""Merges asked for again, and what they are made from."""

from __future__ import annotations

import pytest

from tests.registry.site import SHARED, Site, adapter_files, unique
from tests.support.push import push

pytestmark = pytest.mark.worker


def test_a_merge_that_is_done_takes_further_tags(site: Site) -> None:
    name, out = unique("m"), unique("out")
    site.pushed("ns", name, 51)
    asked = {"adapters": [{"adapter": f"ns/{name}"}], "to": f"ns/{out}"}
    job = site.until_job(site.client.post("/api/v1/merges", json=asked).json()["id"])
    again = site.client.post("/api/v1/merges", json={**asked, "tags": ["prod"]})
    assert (again.status_code, again.json()["id"]) == (200, job["id"])
    tags = site.client.get(f"/api/v1/repositories/ns/{out}/tags").json()["items"]
    assert [(tag["tag"], tag["version"]["number"]) for tag in tags] == [("prod", 1)]


def test_a_merge_whose_result_was_deleted_is_done_anew(site: Site) -> None:
    name, out = unique("m"), unique("out")
    site.pushed("ns", name, 52)
    asked = {"adapters": [{"adapter": f"ns/{name}"}], "to": f"ns/{out}"}
    first = site.until_job(site.client.post("/api/v1/merges", json=asked).json()["id"])
    assert site.client.delete(f"/api/v1/repositories/ns/{out}/versions/v1").status_code == 204
    second = site.until_job(site.client.post("/api/v1/merges", json=asked).json()["id"])
    assert second["id"] == first["id"] + "-2"
    assert (second["state"], second["result"]["number"]) == ("done", 2)
    assert second["result"]["digest"] == first["result"]["digest"]
    assert site.client.post("/api/v1/merges", json=asked).json()["id"] == second["id"]


def test_a_merge_is_made_from_the_versions_that_were_named(site: Site) -> None:
    """The same bytes in another namespace, pushed first, are not its origin."""
    name, out = unique("m"), unique("out")
    elsewhere = push(site.client, "elsewhere", name, "adapter", adapter_files(53), base=f"{SHARED}/base").json()
    here = site.pushed("ns", name, 53)
    assert here["digest"] == elsewhere["version"]["digest"]
    asked = {"adapters": [{"adapter": f"ns/{name}"}], "to": f"ns/{out}"}
    assert site.until_job(site.client.post("/api/v1/merges", json=asked).json()["id"])["state"] == "done"
    version = site.client.get(f"/api/v1/repositories/ns/{out}/versions/v1").json()
    assert [(parent["namespace"], parent["name"]) for parent in version["parents"]] == [("ns", name)]


def test_a_merge_reports_what_survived_of_each_tensor(site: Site) -> None:
    name, out = unique("m"), unique("out")
    site.pushed("ns", name, 54)
    asked = {"adapters": [{"adapter": f"ns/{name}"}], "to": f"ns/{out}"}
    site.until_job(site.client.post("/api/v1/merges", json=asked).json()["id"])
    reports = site.client.get(f"/api/v1/repositories/ns/{out}/versions/v1/reports").json()["items"]
    (report,) = [report for report in reports if report["kind"] == "merge"]
    assert 0.9 < report["body"]["kept"] < 1.1
    assert all(tensor["sums"]["delta_delta"] > 0 for tensor in report["body"]["tensors"])
    facts = site.client.get(f"/api/v1/repositories/ns/{out}/versions/v1").json()["facts"]
    assert facts["kept"] == report["body"]["kept"]
