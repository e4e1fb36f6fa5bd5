"""Names with capitals: one repository whatever the case of letters, shown as it was first pushed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from tests.registry.site import SHARED, Site, problem, unique

CASES = (str, str.lower, str.upper)


def test_every_route_ignores_case_and_shows_the_first_spelling(site: Site) -> None:
    space, name = unique("acme"), unique("Qwen2.5-7B-LoRA")
    first = site.pushed(space.upper(), name, 1, tags=["prod"])
    assert (first["namespace"], first["name"], first["number"]) == (space, name, 1)
    for number, case in enumerate(CASES, start=2):
        again = site.pushed(case(space), case(name), number)
        assert (again["namespace"], again["name"], again["number"]) == (space, name, number)
    assert site.pushed(space, name.upper(), 1)["number"] == 1
    for case in CASES:
        path = f"/api/v1/repositories/{case(space)}/{case(name)}"
        for url in (
            *(path, f"{path}/versions/latest", f"{path}/versions/v1", f"{path}/versions/prod"),
            *(f"{path}/tags/prod", f"{path}/versions/{first['digest']}", f"{path}/versions/{first['commit']}"),
        ):
            assert site.client.get(url).json()["name"] == name, url
        assert [item["name"] for item in site.client.get(f"{path}/versions").json()["items"]] == [name] * 4
        assert site.client.get(f"{path}/versions/v1/files/adapter_config.json").status_code == 200
        assert site.client.get(f"{path}/versions/v1/lineage").json()["root"] == f"{space}/{name}:v1"
        assert site.client.put(f"{path}/tags/best", json={"target": "v2"}).json()["name"] == name
        assert site.client.get(f"{path}/history").json()["items"]
        listed = site.client.get("/api/v1/repositories", params={"namespace": case(space), "q": case(name)})
        assert [item["name"] for item in listed.json()["items"]] == [name]
        assert site.client.get(f"/api/v1/namespaces/{case(space)}").json()["name"] == space
    events = site.events(f"{space}/{name}")
    assert [event["kind"] for event in events].count("version-committed") == 4
    assert {event["subject"].partition(":")[0] for event in events} == {f"{space}/{name}"}


def test_hub_clients_find_it_in_any_case(site: Site) -> None:
    space, name = unique("acme"), unique("Chat.V2")
    site.pushed(space, name, 1, tags=["prod"])
    for case in CASES:
        repo = f"{case(space)}/{case(name)}"
        info = site.client.get(f"/hf/api/models/{repo}").json()
        assert info["id"] == repo  # what the client asked for
        head = site.client.head(f"/hf/{repo}/resolve/prod/adapter_config.json")
        assert (head.status_code, head.headers["x-repo-commit"]) == (200, info["sha"])
        assert site.client.get(f"/hf/api/models/{repo}.prod").json()["sha"] == info["sha"]
    listed = site.client.get("/hf/api/models", params={"author": space.upper(), "search": "CHAT"}).json()
    assert [item["id"] for item in listed] == [f"{space}/{name}"]


def test_a_name_is_taken_in_every_case(site: Site) -> None:
    space, name = unique("acme"), unique("Taken")
    site.pushed(space, name, 1)
    lower = site.client.post(
        "/api/v1/uploads",
        json={"namespace": space, "name": name.lower(), "kind": "dataset", "files": [_file()]},
    )
    problem(lower, "conflict")
    path = f"/api/v1/repositories/{space}/{name}"
    site.client.delete(f"{path}/versions/v1")
    assert site.client.delete(path).status_code == 204
    problem(site.push(space, name.upper(), 1), "deleted")


def _file() -> dict[str, object]:
    return {"path": "data.jsonl", "size": 1, "digest": "sha256:" + "0" * 64}


def test_pushes_of_two_spellings_at_once_make_one_repository(site: Site) -> None:
    space, name = unique("race"), unique("Model")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda seed: site.pushed(space, CASES[seed % 3](name), seed), range(1, 5)))
    assert sorted(version["number"] for version in made) == [1, 2, 3, 4]
    assert len({version["name"] for version in made}) == 1


def test_the_database_keeps_names_unique_in_lower_case(site: Site) -> None:
    space, name = unique("acme"), unique("Unique")
    site.pushed(space, name, 1)
    engine = sa.create_engine(site.database)
    try:
        with engine.connect() as connection:
            rows = connection.execute(
                sa.text("SELECT name, spelling FROM repository WHERE namespace = :space"), {"space": space}
            ).all()
        assert [tuple(row) for row in rows] == [(name.lower(), name)]
        values = {"space": space, "name": name.lower(), "spelling": name.upper()}
        with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO repository (namespace, name, kind, next_number, created_at, spelling) "
                    "VALUES (:space, :name, 'adapter', 1, 0, :spelling)"
                ),
                values,
            )
    finally:
        engine.dispose()


def test_policies_and_bases_ignore_case(site: Site) -> None:
    space, name = unique("acme"), unique("Governed")
    version = site.pushed(space, name, 1)
    policy = site.client.put(
        "/api/v1/policies", json={"pattern": f"{space.upper()}/{name.upper()}:prod", "document": {"name": "p"}}
    )
    assert policy.json()["pattern"] == f"{space}/{name.lower()}:prod"
    for case in CASES:
        moved = site.client.put(f"/api/v1/repositories/{space}/{case(name)}/tags/prod", json={"target": "v1"})
        problem(moved, "tag-gated")
    assert site.pushed(space, name, 2, tags=[])["base"]["digest"] == version["base"]["digest"]
    found = site.client.get("/api/v1/repositories", params={"alias": "LORA-reg-Fixture/SMALL"}).json()["items"]
    assert f"{SHARED}/base" in {f"{item['namespace']}/{item['name']}" for item in found}
    other = site.client.put(f"/api/v1/repositories/{SHARED}/base/aliases", json={"aliases": ["Lora-Reg-fixture/small"]})
    assert other.status_code == 200


@pytest.mark.worker
def test_a_merge_into_a_name_with_capitals(site: Site) -> None:
    space, name, out = unique("acme"), unique("Adapter"), unique("Merged")
    site.pushed(space, name, 1)
    asked = {"adapters": [{"adapter": f"{space}/{name.upper()}"}], "to": f"{space.upper()}/{out}"}
    job = site.client.post("/api/v1/merges", json=asked).json()
    assert site.until_job(job["id"])["state"] == "done"
    again = site.client.post("/api/v1/merges", json={**asked, "to": f"{space}/{out.lower()}"}).json()
    assert again["id"] == job["id"]
    assert again["result"]["name"] == out
    version = site.client.get(f"/api/v1/repositories/{space}/{out.upper()}/versions/latest").json()
    assert (version["name"], version["number"], version["parents"][0]["name"]) == (out, 1, name)
