"""Retention rules: shown before they are set, and what they keep."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lora_registry.repositories import retention
from tests.registry.keeping.shelves import Shelf, shelved
from tests.registry.site import SHARED, Site, adapter_files, problem, unique
from tests.support.push import push


@pytest.fixture(scope="module", params=["sqlite-folder", "postgresql-folder"])
def kept(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_server: str
) -> Iterator[tuple[Site, Shelf]]:
    with shelved(request.param, tmp_path_factory.mktemp("retention"), postgres_server, None) as made:
        yield made


def test_a_rule_keeps_the_newest_the_tagged_and_what_others_were_made_from(kept: tuple[Site, Shelf]) -> None:
    site, _ = kept
    assert site.thread is not None
    name, child = unique("many"), unique("child")
    for seed in range(6):
        site.pushed("ns", name, 600 + seed)
    path = f"/api/v1/repositories/ns/{name}"
    site.client.put(f"{path}/tags/prod", json={"target": "v2"})
    made = push(
        site.client, "ns", child, "adapter", adapter_files(700), base=f"{SHARED}/base", parents=[f"ns/{name}:v1"]
    )
    assert made.status_code == 201
    shown = site.client.get(f"{path}/retention").json()
    assert shown == {"keep_last": None, "would_delete": [], "would_free": 0}
    asked = site.client.get(f"{path}/retention", params={"keep_last": 2}).json()
    assert (asked["keep_last"], asked["would_delete"]) == (None, [4, 3])
    assert asked["would_free"] > 0
    assert retention.apply(site.thread.context) == 0
    assert site.client.put(f"{path}/retention", json={"keep_last": 2}).json()["would_delete"] == [4, 3]
    assert retention.apply(site.thread.context) == 2
    listed = [version["number"] for version in site.client.get(f"{path}/versions").json()["items"]]
    assert listed == [6, 5, 2, 1]
    assert [e["kind"] for e in site.events(f"ns/{name}")].count("version-expired") == 2
    assert site.client.put(f"{path}/versions/v4/restoration").status_code == 200
    assert site.client.put(f"{path}/retention", json={"keep_last": None}).json()["keep_last"] is None
    assert retention.apply(site.thread.context) == 0
    problem(site.client.put(f"{path}/retention", json={"keep_last": 0}), "invalid-request")
    # A rule of a deleted repository is of no more interest.
    site.client.put(f"{path}/retention", json={"keep_last": 1})
    site.client.delete(f"{path}/tags/prod")
    site.client.delete(f"/api/v1/repositories/ns/{child}")
    assert site.client.delete(path).status_code == 204
    assert retention.apply(site.thread.context) == 0
