"""Many callers at once: numbers without gaps, histories without forks, nobody answered with 5xx."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.registry.conftest import Sites
from tests.registry.site import SHARED, Site, adapter_files, base_files, unique
from tests.support.push import describe, push, upload


@pytest.fixture(params=[1, 2], ids=["one-process", "two-processes"])
def busy(sites: Sites, processes: Sites, database: str, request: pytest.FixtureRequest) -> Site:
    found = sites(database) if request.param == 1 else processes(database, request.param)
    found.need_base()
    return found


def together(site: Site, count: int, act: Callable[[httpx.Client, int], httpx.Response]) -> list[httpx.Response]:
    """Run `act(client, number)` in so many threads at once, over as many connections."""
    gate = threading.Barrier(count)

    def one(number: int) -> httpx.Response:
        gate.wait()
        return act(site.client, number)

    with ThreadPoolExecutor(count) as pool:
        try:
            answers = list(pool.map(one, range(count)))
        except httpx.TransportError as error:
            raise AssertionError(site.talk()) from error
    failed = [answer.text for answer in answers if answer.status_code >= 500]
    assert not failed, (failed[:3], site.talk())
    return answers


def statuses(answers: list[httpx.Response]) -> dict[int, int]:
    return {status: sum(a.status_code == status for a in answers) for status in {a.status_code for a in answers}}


def test_32_pushes_to_a_new_name(busy: Site) -> None:
    name = unique("new")
    answers = together(
        busy, 32, lambda c, n: push(c, "ns", name, "adapter", adapter_files(1000 + n), base=f"{SHARED}/base")
    )
    assert statuses(answers) == {201: 32}
    assert sorted(answer.json()["version"]["number"] for answer in answers) == list(range(1, 33))
    listed = busy.client.get(f"/api/v1/repositories/ns/{name}/versions").json()["items"]
    assert [item["number"] for item in listed] == list(range(32, 0, -1))
    kinds = [event["kind"] for event in busy.events(f"ns/{name}")]
    assert (kinds.count("repository-created"), kinds.count("version-committed")) == (1, 32)


def test_32_pushes_of_the_same_content(busy: Site) -> None:
    name, files = unique("same"), adapter_files(2000)
    answers = together(busy, 32, lambda c, _: push(c, "ns", name, "adapter", files, base=f"{SHARED}/base"))
    assert statuses(answers) == {201: 1, 200: 31}
    assert {answer.json()["version"]["number"] for answer in answers} == {1}
    assert busy.client.get(f"/api/v1/repositories/ns/{name}").json()["versions"] == 1


def test_64_swaps_of_one_tag_have_one_winner_a_generation(busy: Site) -> None:
    path = busy.repository(versions=3)
    assert busy.client.put(f"{path}/tags/prod", json={"target": "v1"}).status_code == 200
    for generation in range(1, 3):
        target = f"v{1 + generation % 3}"
        answers = together(
            busy,
            64,
            lambda c, _, g=generation, t=target: c.put(
                f"{path}/tags/prod", json={"target": t}, headers={"If-Match": f'"gen-{g}"'}
            ),
        )
        assert statuses(answers) == {200: 1, 412: 63}
        assert {a.json()["current"]["generation"] for a in answers if a.status_code == 412} == {generation + 1}
    history = busy.client.get(f"{path}/history").json()["items"]
    assert [move["generation"] for move in history] == [3, 2, 1]
    for newer, older in itertools.pairwise(history):
        assert newer["from_digest"] == older["to_digest"]


def test_one_of_many_creates_a_tag(busy: Site) -> None:
    path = busy.repository(versions=2)
    answers = together(
        busy,
        16,
        lambda c, n: c.put(f"{path}/tags/new", json={"target": f"v{1 + n % 2}"}, headers={"If-None-Match": "*"}),
    )
    assert statuses(answers) == {200: 1, 412: 15}


def test_a_tag_never_points_to_a_deleted_version(busy: Site) -> None:
    path = busy.repository(versions=9)

    def act(client: httpx.Client, number: int) -> httpx.Response:
        version = 1 + number // 2
        if number % 2:
            return client.delete(f"{path}/versions/v{version}")
        return client.put(f"{path}/tags/t{version}", json={"target": f"v{version}"})

    answers = together(busy, 16, act)
    for version in range(1, 9):
        tagged, deleted = answers[2 * version - 2].status_code, answers[2 * version - 1].status_code
        assert (tagged, deleted) in ((200, 409), (410, 204)), version
        shown = busy.client.get(f"{path}/versions/t{version}").status_code
        assert shown == (200 if tagged == 200 else 404)


@pytest.mark.parametrize("kind", ["base", "parent"])
def test_no_live_version_has_a_deleted_origin(busy: Site, kind: str) -> None:
    rounds = 8
    names = [unique(f"b{kind}") for _ in range(rounds)]
    for number, name in enumerate(names):
        if kind == "base":
            assert push(busy.client, "race", name, "base", base_files()).status_code == 201
        else:
            busy.pushed("race", name, 3000 + number)
    fields: list[dict[str, Any]] = [
        {"base": f"race/{name}", "accept_base": True}
        if kind == "base"
        else {"base": f"{SHARED}/base", "parents": [f"race/{name}"]}
        for name in names
    ]
    targets = [unique("child") for _ in names]
    files = adapter_files(3100)
    sessions = [upload(busy.client, "race", target, "adapter", files).json()["id"] for target in targets]

    def act(client: httpx.Client, number: int) -> httpx.Response:
        which = number // 2
        if number % 2:
            return client.delete(f"/api/v1/repositories/race/{names[which]}/versions/v1")
        body = {"session": sessions[which], "kind": "adapter", "files": describe(files), **fields[which]}
        return client.post(f"/api/v1/repositories/race/{targets[which]}/versions", json=body)

    answers = together(busy, 2 * rounds, act)
    for which in range(rounds):
        made, deleted = answers[2 * which], answers[2 * which + 1]
        outcome = (made.status_code, deleted.status_code)
        assert outcome in ((201, 409), (404, 204), (410, 204)), (kind, made.text, deleted.text)


def test_an_alias_has_one_base(busy: Site) -> None:
    ns = unique("al")
    for number in range(8):
        assert push(busy.client, ns, f"b{number}", "base", base_files()).status_code == 201
    answers = together(
        busy, 8, lambda c, n: c.put(f"/api/v1/repositories/{ns}/b{n}/aliases", json={"aliases": ["x", "y"]})
    )
    assert statuses(answers) == {200: 1, 409: 7}


def test_pages_hold_while_others_push(busy: Site) -> None:
    ns = unique("pages")
    before = [f"n{number:02d}" for number in range(12)]
    for name in before:
        busy.pushed(ns, name, 1)
    stop = threading.Event()

    def pushes() -> None:
        with busy.connect() as client:
            for number in range(200):
                if stop.is_set():
                    return
                push(client, ns, f"n{number % 12:02d}-{number}", "adapter", adapter_files(1), base=f"{SHARED}/base")

    thread = threading.Thread(target=pushes)
    thread.start()
    try:
        for _ in range(3):
            names = [item["name"] for item in pages(busy, "/api/v1/repositories", namespace=ns, limit=5)]
            assert names == sorted(set(names))
            assert set(before) <= set(names)
    finally:
        stop.set()
        thread.join()


def pages(site: Site, path: str, **query: Any) -> Iterator[dict[str, Any]]:
    cursor = None
    while True:
        page = site.client.get(path, params={**query, **({"cursor": cursor} if cursor else {})}).json()
        yield from page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


def test_who_follows_the_events_misses_none(busy: Site) -> None:
    """Ids are given before transactions commit: a reader that goes by them must not pass one that is still open."""
    ns, seen, stop = unique("follow"), [], threading.Event()
    paths = [f"/api/v1/repositories/{ns}/r{number}" for number in range(6)]
    for number in range(6):
        busy.pushed(ns, f"r{number}", 1)
        busy.pushed(ns, f"r{number}", 2)

    def follow() -> None:
        after = None
        with busy.connect() as client:
            while True:
                last = stop.is_set()
                page = client.get(
                    "/api/v1/events", params={"limit": 1000, **({"after": after} if after else {})}
                ).json()
                seen.extend(item["id"] for item in page["items"])
                if last and not page["items"]:
                    return
                after = page["next_cursor"]

    reader = threading.Thread(target=follow)
    reader.start()

    def move(client: httpx.Client, number: int) -> httpx.Response:
        for turn in range(8):
            answer = client.put(f"{paths[number % 6]}/tags/t{number}", json={"target": f"v{1 + turn % 2}"})
        return answer

    try:
        assert statuses(together(busy, 12, move)) == {200: 12}
    finally:
        stop.set()
        reader.join()
    every = [item["id"] for item in _all_events(busy)]
    assert sorted(every) == every
    assert seen == every[: len(seen)]
    assert len(seen) >= len([e for e in every if e <= max(seen)])


def _all_events(site: Site) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    after = None
    while True:
        page = site.client.get("/api/v1/events", params={"limit": 1000, **({"after": after} if after else {})}).json()
        if not page["items"]:
            return items
        items += page["items"]
        after = page["next_cursor"]


def test_the_same_merge_asked_for_at_once_is_one_job(busy: Site) -> None:
    name = unique("m")
    busy.pushed("ns", name, 4000)
    request = {"adapters": [{"adapter": f"ns/{name}"}], "to": f"ns/{unique('out')}"}
    answers = together(busy, 16, lambda c, _: c.post("/api/v1/merges", json=request))
    assert set(statuses(answers)) <= {200, 202}
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_a_cancelled_merge_asked_for_by_many_at_once_is_started_again(busy: Site) -> None:
    name = unique("m")
    busy.pushed("ns", name, 4001)
    request = {"adapters": [{"adapter": f"ns/{name}"}], "to": f"ns/{unique('out')}"}
    job = busy.client.post("/api/v1/merges", json=request).json()["id"]
    busy.client.post(f"/api/v1/jobs/{job}/cancel")
    answers = together(busy, 16, lambda c, _: c.post("/api/v1/merges", json=request))
    assert set(statuses(answers)) <= {200, 202}, [answer.text for answer in answers if answer.status_code == 409][:1]
    assert {answer.json()["id"] for answer in answers} == {job}
    assert busy.client.get(f"/api/v1/jobs/{job}").json()["state"] in ("queued", "running", "done")
