"""Jobs and damaged bytes: nothing is derived from them, and the job says why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.registry.keeping.shelves import Shelf, flipped, sha256, shelved
from tests.registry.site import SHARED, Site, adapter_files, base_files, unique, until
from tests.support.push import push

WEIGHTS = "adapter_model.safetensors"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(scope="module", params=["sqlite-folder", "postgresql-s3"])
def kept(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_server: str
) -> Iterator[tuple[Site, Shelf]]:
    s3 = request.getfixturevalue("ministack_server") if request.param.endswith("s3") else None
    with shelved(request.param, tmp_path_factory.mktemp("jobs"), postgres_server, s3) as made:
        made[0].worker()
        yield made


def own_base(site: Site, seed: int) -> tuple[str, dict[str, bytes]]:
    """A base with bytes of its own, so that damage to it is of no other test."""
    files = base_files()
    changed = {**files, **{shard: flipped(files[shard], at=-2 - seed) for shard in SHARDS}}
    name = unique("base")
    answer = push(site.client, "ns", name, "base", changed)
    assert answer.status_code == 201, answer.text
    return name, changed


def adapter(site: Site, base: str, seed: int) -> tuple[str, dict[str, bytes]]:
    name, files = unique("a"), adapter_files(seed)
    answer = push(site.client, "ns", name, "adapter", files, base=f"ns/{base}", accept_base=True)
    assert answer.status_code == 201, answer.text
    job = answer.json()["job"]
    assert site.until_job(job)["state"] == "done"  # the inspection reads too: not while bytes are damaged
    return name, files


def submit(site: Site, path: str, **body: Any) -> dict[str, Any]:
    answer = site.client.post(f"/api/v1/{path}", json=body)
    assert answer.status_code in (200, 202), answer.text
    return site.until_job(answer.json()["id"])


def events(site: Site, name: str) -> list[str]:
    return [event["kind"] for event in site.events(f"ns/{name}") if event["kind"].startswith("blob-")]


@pytest.mark.parametrize("what", ["base-first", "base-second", "adapter", "lost"])
def test_no_merge_is_made_of_damaged_bytes(kept: tuple[Site, Shelf], what: str) -> None:
    site, shelf = kept
    base, base_data = own_base(site, 2 * len(what))
    name, files = adapter(site, base, 500 + len(what))
    data = {
        "base-first": base_data[SHARDS[0]],
        "base-second": base_data[SHARDS[1]],
        "adapter": files[WEIGHTS],
        "lost": base_data[SHARDS[0]],
    }[what]
    shelf.write(data, None if what == "lost" else flipped(data, at=-64))
    target = f"ns/{unique('merged')}"
    job = submit(site, "merges", adapters=[{"adapter": f"ns/{name}"}], to=target)
    assert (job["state"], job["error_code"]) == ("failed", "corrupt"), job
    assert sha256(data)[:12] in job["error"]
    assert site.client.get(f"/api/v1/repositories/{target}").status_code == 404
    owner, again, kind = (name, files, "adapter") if what == "adapter" else (base, base_data, "base")
    state = "blob-missing" if what == "lost" else "blob-damaged"
    assert events(site, owner) == [state]
    options = {"base": f"ns/{base}", "accept_base": True} if kind == "adapter" else {}
    assert push(site.client, "ns", owner, kind, again, **options).status_code == 200
    assert events(site, owner) == [state, "blob-repaired"]
    done = submit(site, "merges", adapters=[{"adapter": f"ns/{name}"}], to=target)
    assert done["state"] == "done", done


def test_no_adapter_is_derived_from_damaged_bytes(kept: tuple[Site, Shelf]) -> None:
    site, shelf = kept
    base, base_data = own_base(site, 40)
    name, files = adapter(site, base, 520)
    merged = f"ns/{unique('merged')}"
    assert submit(site, "merges", adapters=[{"adapter": f"ns/{name}"}], to=merged, dtype="float32")["state"] == "done"
    shelf.write(files[WEIGHTS], flipped(files[WEIGHTS]))
    for path, body in (
        ("resizes", {"adapter": f"ns/{name}", "rank": 1}),
        ("compositions", {"adapters": [{"adapter": f"ns/{name}"}], "method": "svd", "parameters": {"rank": 2}}),
    ):
        job = submit(site, path, **body, to=f"ns/{unique('out')}")
        assert (job["state"], job["error_code"]) == ("failed", "corrupt"), job
    assert events(site, name) == ["blob-damaged"]
    shard = base_data[SHARDS[1]]
    shelf.write(shard, flipped(shard, at=-64))
    job = submit(site, "extractions", tuned=merged, base=f"ns/{base}", rank=1, to=f"ns/{unique('out')}")
    assert (job["state"], job["error_code"]) == ("failed", "corrupt"), job
    assert events(site, base) == ["blob-damaged"]


def test_a_derived_version_is_derived_again(kept: tuple[Site, Shelf]) -> None:
    site, shelf = kept
    base, _ = own_base(site, 60)
    name, _ = adapter(site, base, 530)
    target = f"ns/{unique('small')}"
    job = submit(site, "resizes", adapter=f"ns/{name}", rank=1, to=target)
    assert job["state"] == "done", job
    path = f"/api/v1/repositories/{target}/versions/v1"
    file = next(f for f in site.client.get(path).json()["files"] if f["path"] == WEIGHTS)
    answer = site.client.get(f"{path}/files/{WEIGHTS}", follow_redirects=True)
    data = answer.content
    assert "sha256:" + sha256(data) == file["digest"]
    until(lambda: any(report["kind"] == "inspect" for report in site.client.get(f"{path}/reports").json()["items"]))
    shelf.write(data, None)
    assert site.client.get(f"{path}/files/{WEIGHTS}").status_code == 500
    before = len(shelf.objects())
    again = site.client.post("/api/v1/reproductions", json={"version": f"{target}:v1"})
    assert site.until_job(again.json()["id"])["state"] == "done"
    until(lambda: len(shelf.objects()) == before + 1)  # what else it made again is removed
    assert site.client.get(f"{path}/files/{WEIGHTS}", follow_redirects=True).content == data
    assert events(site, target.partition("/")[2]) == ["blob-missing", "blob-repaired"]


def test_an_inspection_marks_what_it_finds(kept: tuple[Site, Shelf]) -> None:
    site, shelf = kept
    site.workers[0].kill()
    site.workers[0].wait()
    name, files = unique("inspected"), adapter_files(540)
    answer = push(site.client, "ns", name, "adapter", files, base=f"{SHARED}/base")
    shelf.write(files[WEIGHTS], flipped(files[WEIGHTS]))
    site.worker()
    assert site.until_job(answer.json()["job"])["state"] == "done"
    assert events(site, name) == ["blob-damaged"]
    assert site.client.get(f"/api/v1/repositories/ns/{name}/versions/v1/files/{WEIGHTS}").status_code == 500
