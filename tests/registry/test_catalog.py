"""Repositories, versions, tags, history, lineage, jobs and events as callers see them."""

from __future__ import annotations

import pytest

from tests.registry.site import SHARED, Site, adapter_files, problem, unique
from tests.support.push import push


def test_every_get_has_an_etag_and_answers_304_to_it(site: Site) -> None:
    path = site.repository()
    site.client.put(f"{path}/tags/t", json={"target": "v1"})
    job = site.client.get("/api/v1/jobs").json()["items"][-1]["id"]
    base = f"/api/v1/repositories/{SHARED}/base/versions/latest"
    for url in (
        "/api/v1/whoami",
        "/api/v1/repositories?namespace=nobody",
        path,
        f"{path}/versions",
        f"{path}/versions/v1",
        f"{path}/versions/v1/manifest",
        f"{path}/versions/v1/files/adapter_config.json",
        f"{path}/versions/v1/lineage",
        f"{path}/tags",
        f"{path}/tags/t",
        f"{path}/history",
        f"{base}/fingerprint",
        f"/api/v1/jobs/{job}",
        "/api/v1/events?limit=2",
    ):
        first = site.client.get(url)
        assert first.status_code == 200, (url, first.text)
        again = site.client.get(url, headers={"If-None-Match": f'"x", {first.headers["etag"]}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"]), url
        assert site.client.get(url, headers={"If-None-Match": '"x"'}).status_code == 200


def test_selectors(site: Site) -> None:
    path = site.repository(versions=3)
    versions = {number: site.client.get(f"{path}/versions/v{number}").json() for number in (1, 2, 3)}
    site.client.put(f"{path}/tags/t", json={"target": "v1"})
    site.client.put(f"{path}/tags/t", json={"target": "v2"})
    d1, d2, d3 = (versions[number]["digest"] for number in (1, 2, 3))
    for selector, number in (
        ("latest", 3),
        ("t", 2),
        ("v1", 1),
        (d2, 2),
        (f"t@{d1}", 1),
        (f"v3@{d3}", 3),
        (versions[1]["commit"], 1),
    ):
        answer = site.client.get(f"{path}/versions/{selector}")
        assert answer.json()["number"] == number, selector
        assert answer.headers["x-lora-reg-digest"] == versions[number]["digest"]
    for selector, code in (
        (f"t@{d3}", "conflict"),
        (f"v1@{d3}", "conflict"),
        ("v9", "not-found"),
        ("v" + "9" * 18, "not-found"),
        ("none", "not-found"),
        ("sha256:" + "0" * 64, "not-found"),
        ("0" * 40, "not-found"),
        ("sha256:xyz", "invalid-reference"),
        ("V1", "invalid-reference"),
        ("-x", "invalid-reference"),
    ):
        problem(site.client.get(f"{path}/versions/{selector}"), code)


def test_tags_move_by_compare_and_swap(site: Site) -> None:
    path = site.repository(versions=2)
    url = f"{path}/tags/prod"
    problem(site.client.get(url), "not-found")
    problem(site.client.put(url, json={"target": "v1"}, headers={"If-Match": '"gen-1"'}), "tag-moved")
    made = site.client.put(url, json={"target": "v1", "reason": "first"}, headers={"If-None-Match": "*"})
    assert (made.status_code, made.headers["etag"], made.json()["generation"]) == (200, '"gen-1"', 1)
    taken = problem(site.client.put(url, json={"target": "v2"}, headers={"If-None-Match": "*"}), "tag-moved")
    assert taken["current"] == made.json()
    stale = problem(site.client.put(url, json={"target": "v2"}, headers={"If-Match": '"gen-7"'}), "tag-moved")
    assert stale["current"]["version"]["number"] == 1
    moved = site.client.put(url, json={"target": "v2"}, headers={"If-Match": '"gen-1"'})
    assert moved.headers["etag"] == '"gen-2"'
    same = site.client.put(url, json={"target": "v2"})
    assert same.json() == moved.json()
    for header in ("gen-x", "*", '"gen-99999999999999999999"', "W/x"):
        problem(site.client.put(url, json={"target": "v1"}, headers={"If-Match": header}), "invalid-request")
    problem(site.client.put(url, json={"target": "v9"}), "not-found")
    for tag in ("latest", "v3", "0" * 40, "-x", "x" * 129):
        problem(site.client.put(f"{path}/tags/{tag}", json={"target": "v1"}), "invalid-reference")
    assert site.client.delete(url, headers={"If-Match": '"gen-1"'}).status_code == 412
    assert site.client.delete(url, headers={"If-Match": '"gen-2"'}).status_code == 204
    problem(site.client.delete(url), "not-found")
    again = site.client.put(url, json={"target": "v1"}).json()
    assert again["generation"] == 4
    history = site.client.get(f"{path}/history", params={"tag": "prod"}).json()["items"]
    assert [(move["generation"], move["from_number"], move["to_number"]) for move in history] == [
        (4, None, 1),
        (3, 2, None),
        (2, 1, 2),
        (1, None, 1),
    ]
    assert history[-1]["reason"] == "first"
    name = path.removeprefix("/api/v1/repositories/")
    kinds = [event["kind"] for event in site.events(name) if event["kind"].startswith("tag")]
    assert kinds == ["tag-moved", "tag-moved", "tag-removed", "tag-moved"]


def test_a_protected_tag_moves_for_those_who_say_from_where(site: Site) -> None:
    path = site.repository(versions=2)
    url = f"{path}/tags/prod"
    problem(site.client.put(f"{url}/protection", json={"protected": True}), "not-found")
    site.client.put(url, json={"target": "v1"})
    assert site.client.put(f"{url}/protection", json={"protected": True}).json()["protected"] is True
    problem(site.client.put(url, json={"target": "v2"}), "tag-protected")
    problem(site.client.delete(url), "tag-protected")
    name = path.rpartition("/")[2]
    problem(site.push("ns", name, 3, tags=["prod"]), "tag-protected")
    assert site.client.get(path).json()["versions"] == 2  # the push with it made nothing
    assert site.client.put(url, json={"target": "v2"}, headers={"If-Match": '"gen-1"'}).status_code == 200
    assert site.client.put(f"{url}/protection", json={"protected": False}).json()["protected"] is False
    assert site.client.put(url, json={"target": "v1"}).status_code == 200


def test_rollback(site: Site) -> None:
    path = site.repository(versions=3)
    url = f"{path}/tags/prod"
    problem(site.client.post(f"{url}/rollback", json={}), "not-found")
    site.client.put(url, json={"target": "v1"})
    problem(site.client.post(f"{url}/rollback", json={}), "conflict")
    site.client.put(url, json={"target": "v2"})
    back = site.client.post(f"{url}/rollback", json={"reason": "worse"})
    assert (back.json()["version"]["number"], back.json()["generation"]) == (1, 3)
    problem(site.client.post(f"{url}/rollback", json={"to": "v3"}), "conflict")
    assert site.client.post(f"{url}/rollback", json={"to": "v2"}).json()["version"]["number"] == 2
    problem(site.client.post(f"{url}/rollback", json={}, headers={"If-Match": '"gen-1"'}), "tag-moved")


def test_a_rollback_whose_answer_was_lost_is_done_once(site: Site) -> None:
    path = site.repository(versions=2)
    url = f"{path}/tags/prod"
    for number in (1, 2):
        site.client.put(url, json={"target": f"v{number}"})
    key = {"Idempotency-Key": unique("rollback")}
    first = site.client.post(f"{url}/rollback", json={}, headers=key)
    again = site.client.post(f"{url}/rollback", json={}, headers=key)
    assert (first.json()["version"]["number"], first.json()["generation"]) == (1, 3)
    assert (again.json(), again.headers["etag"]) == (first.json(), '"gen-3"')
    assert site.client.get(url).json()["generation"] == 3


def test_yanked_versions_are_passed_by(site: Site) -> None:
    path = site.repository(versions=2)
    yanked = site.client.put(f"{path}/versions/v2/yank", json={"reason": "leaks"})
    assert yanked.json()["yanked"] == "leaks"
    assert site.client.get(f"{path}/versions/latest").json()["number"] == 1
    assert site.client.get(path).json()["latest"]["number"] == 1
    assert site.client.get(f"{path}/versions/v2").json()["yanked"] == "leaks"
    assert site.client.delete(f"{path}/versions/v2/yank").json()["yanked"] is None
    assert site.client.get(f"{path}/versions/latest").json()["number"] == 2
    name = path.removeprefix("/api/v1/repositories/")
    kinds = [event["kind"] for event in site.events(name) if "yank" in event["kind"]]
    assert kinds == ["version-yanked", "version-unyanked"]


def test_numbers_and_names_are_not_given_out_again(site: Site) -> None:
    path = site.repository(versions=2)
    name = path.rpartition("/")[2]
    assert site.client.delete(f"{path}/versions/v2").status_code == 204
    problem(site.client.get(f"{path}/versions/v2"), "deleted")
    problem(site.client.delete(f"{path}/versions/v2"), "deleted")
    assert site.client.get(f"{path}/versions/latest").json()["number"] == 1
    assert site.pushed("ns", name, 2)["number"] == 3
    site.client.put(f"{path}/tags/t", json={"target": "v3"})
    problem(site.client.delete(f"{path}/versions/v3"), "in-use")
    problem(site.client.delete(path), "in-use")
    assert site.client.delete(f"{path}/tags/t").status_code == 204
    assert site.client.delete(path).status_code == 204
    for answer in (site.client.get(path), site.client.get(f"{path}/versions/v1"), site.push("ns", name, 1)):
        problem(answer, "deleted")
    assert name not in site.client.get("/api/v1/repositories", params={"q": name}).text


def test_what_others_were_made_from_is_not_deleted(site: Site) -> None:
    parent, child = unique("parent"), unique("child")
    site.pushed("ns", parent, 1)
    site.pushed("ns", child, 2, parents=[f"ns/{parent}"])
    problem(site.client.delete(f"/api/v1/repositories/ns/{parent}/versions/v1"), "in-use")
    problem(site.client.delete(f"/api/v1/repositories/ns/{parent}"), "in-use")
    problem(site.client.delete(f"/api/v1/repositories/{SHARED}/base/versions/v1"), "in-use")
    assert site.client.delete(f"/api/v1/repositories/ns/{child}").status_code == 204
    assert site.client.delete(f"/api/v1/repositories/ns/{parent}/versions/v1").status_code == 204


def test_lineage_up_and_down(site: Site) -> None:
    names = [unique("l") for _ in range(3)]
    site.pushed("ns", names[0], 1)
    site.pushed("ns", names[1], 2, parents=[f"ns/{names[0]}"])
    site.pushed("ns", names[2], 3, parents=[f"ns/{names[1]}"])
    keys = [f"ns/{name}:v1" for name in names]

    def graph(number: int, direction: str) -> set[tuple[str, str, str]]:
        url = f"/api/v1/repositories/ns/{names[number]}/versions/v1/lineage"
        found = site.client.get(url, params={"direction": direction}).json()
        assert found["root"] == keys[number]
        assert {edge["child"] for edge in found["edges"]} | {edge["parent"] for edge in found["edges"]} <= set(
            found["nodes"]
        )
        return {(edge["child"], edge["parent"], edge["relation"]) for edge in found["edges"]}

    chain = {(keys[1], keys[0], "parent"), (keys[2], keys[1], "parent")}
    bases = {(key, f"{SHARED}/base:v1", "base") for key in keys}
    assert graph(2, "up") == chain | bases
    assert graph(0, "down") == chain
    assert graph(1, "both") >= chain
    url = f"/api/v1/repositories/ns/{names[0]}/versions/v1/lineage"
    problem(site.client.get(url, params={"direction": "sideways"}), "invalid-request")


def test_lists_by_pattern_kind_and_page(site: Site) -> None:
    ns = unique("list")
    for name in ("sql-a", "sql-b", "sql_c", "prose"):
        site.pushed(ns, name, 1)

    def names(**query: str | int) -> list[str]:
        items = site.client.get("/api/v1/repositories", params={"namespace": ns, **query}).json()["items"]
        return [item["name"] for item in items]

    assert names() == ["prose", "sql-a", "sql-b", "sql_c"]
    assert names(q="sql-*") == ["sql-a", "sql-b"]
    assert names(q="sql_*") == ["sql_c"]
    assert names(q=f"{ns}/*e") == ["prose"]
    assert names(q="sql?b") == ["sql-b"]
    assert names(kind="base") == []
    first = site.client.get("/api/v1/repositories", params={"namespace": ns, "limit": 3}).json()
    rest = site.client.get(
        "/api/v1/repositories", params={"namespace": ns, "limit": 3, "cursor": first["next_cursor"]}
    ).json()
    assert [item["name"] for item in first["items"] + rest["items"]] == names()
    assert rest["next_cursor"] is None
    for bad in ({"q": "SELECT 1"}, {"kind": "x"}):
        problem(site.client.get("/api/v1/repositories", params=bad), "invalid-request")


def test_pages_of_versions_and_history(site: Site) -> None:
    path = site.repository(versions=5)
    for number in (1, 2, 3, 4, 5):
        site.client.put(f"{path}/tags/t", json={"target": f"v{number}"})
    for url, key in ((f"{path}/versions", "number"), (f"{path}/history", "generation")):
        found, cursor = [], None
        while True:
            page = site.client.get(url, params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
            found += [item[key] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert found == [5, 4, 3, 2, 1]


@pytest.mark.worker
def test_a_merge_from_request_to_lineage(site: Site) -> None:
    name, out = unique("m"), unique("out")
    site.pushed("ns", name, 50)
    problem(site.client.post("/api/v1/merges", json={"adapters": [], "to": f"ns/{out}"}), "invalid-request")
    for change, code in (
        ({"to": f"ns/{out}:v1"}, "invalid-reference"),
        ({"to": f"{SHARED}/base"}, "conflict"),
        ({"adapters": [{"adapter": "ns/none"}]}, "not-found"),
        ({"adapters": [{"adapter": f"{SHARED}/base"}]}, "conflict"),
        ({"dtype": "int3"}, "invalid-request"),
    ):
        body = {"adapters": [{"adapter": f"ns/{name}"}], "to": f"ns/{out}", **change}
        problem(site.client.post("/api/v1/merges", json=body), code)
    asked = {"adapters": [{"adapter": f"ns/{name}", "weight": 0.5}], "to": f"ns/{out}", "tags": ["fresh"]}
    job = site.client.post("/api/v1/merges", json=asked).json()
    done = site.until_job(job["id"])
    assert done["state"] == "done", done
    version = site.client.get(f"/api/v1/repositories/ns/{out}/versions/fresh").json()
    assert version["kind"] == "model"
    assert [parent["name"] for parent in version["parents"]] == [name]
    follow = site.client.get(f"/api/v1/jobs/{job['id']}/progress", params={"offset": 0}).json()
    assert follow["state"] == "done"
    assert [item["offset"] for item in follow["items"]] == list(range(len(follow["items"])))
    assert site.client.post("/api/v1/merges", json=asked).status_code == 200
    problem(site.client.post(f"/api/v1/jobs/{job['id']}/retry"), "conflict")
    assert site.client.post(f"/api/v1/jobs/{job['id']}/cancel").json()["state"] == "done"
    problem(site.client.get("/api/v1/jobs/none"), "not-found")
    problem(site.client.delete(f"/api/v1/repositories/ns/{name}/versions/v1"), "in-use")


@pytest.mark.worker
def test_a_report_follows_every_push(site: Site) -> None:
    name = unique("rep")
    job = push(site.client, "ns", name, "adapter", adapter_files(60), base=f"{SHARED}/base").json()["job"]
    assert site.until_job(job)["state"] == "done"
    reports = site.client.get(f"/api/v1/repositories/ns/{name}/versions/v1/reports").json()["items"]
    assert [(report["kind"], report["passed"]) for report in reports] == [("inspect", True)]


@pytest.mark.parametrize("path", ["N_/x", "ns/-X", "ns/a..b", "ns/" + "a" * 65, "n" * 97 + "/a"])
def test_names_that_are_none(site: Site, path: str) -> None:
    problem(site.client.get(f"/api/v1/repositories/{path}"), "invalid-reference")
