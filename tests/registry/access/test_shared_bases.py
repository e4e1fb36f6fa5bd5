"""Bases are shared: who may read an adapter may read the base version that it pins, and nothing else of the base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.registry.conftest import Sites
from tests.registry.site import Site, adapter_files, base_files, problem, unique
from tests.support.push import push

API = "/api/v1/repositories"


@dataclass
class Shop:
    """A namespace `home` with a base of two versions, and a `team` whose adapter pins the first one."""

    site: Site
    home: str
    team: str
    root: httpx.Client
    writer: httpx.Client
    reader: httpx.Client
    stranger: httpx.Client

    @property
    def base(self) -> str:
        return f"{API}/{self.home}/llama"


@pytest.fixture
def shop(sites: Sites, database: str) -> Iterator[Shop]:
    site = sites(database, auth="token")
    home, team = unique("home"), unique("team")
    clients = [
        site.connect(site.token_with(*grants))
        for grants in (("admin:*",), (f"writer:{team}",), (f"reader:{team}",), (f"admin:{unique('else')}",))
    ]
    shop = Shop(site, home, team, *clients)
    second = {**base_files(), "README.md": b"changed"}
    for tag, files in (("first", base_files()), ("second", second)):
        made = push(shop.root, home, "llama", "base", files, aliases=[f"Meta/{home}"], tags=[tag])
        assert made.status_code == 201, made.text
    made = push(shop.root, team, "sql", "adapter", adapter_files(1), base=f"{home}/llama:v1", accept_base=True)
    assert made.status_code == 201, made.text
    yield shop
    site.visibility(home, "private")
    for client in clients:
        client.close()


def test_the_pinned_version_is_read_facts_and_files(shop: Shop) -> None:
    config = base_files()["config.json"]
    for path in ("", "/manifest", "/fingerprint", "/lineage", "/reports", "/signatures"):
        assert shop.reader.get(f"{shop.base}/versions/v1{path}").status_code == 200, path
    assert shop.reader.get(f"{shop.base}/versions/v1/files/config.json").content == config
    view = shop.reader.get(f"{API}/{shop.team}/sql/versions/v1").json()
    assert (view["base"]["namespace"], view["base"]["name"], view["base"]["number"]) == (shop.home, "llama", 1)
    for repo in (f"{shop.home}/llama", f"Meta/{shop.home}"):
        assert shop.reader.get(f"/hf/{repo}/resolve/main/config.json").content == config, repo
        assert shop.reader.get(f"/hf/api/models/{repo}").json()["sha"] == view["base"]["digest"][7:47]
    card = shop.reader.get(f"/hf/api/models/{shop.team}/sql").json()["cardData"]
    assert card["base_model"] == f"{shop.home}/llama"


def test_no_other_version_of_it_is_there(shop: Shop) -> None:
    second = shop.root.get(f"{shop.base}/versions/v2").json()["digest"]
    for selector in ("v2", second, second[7:47], "second", "v9"):
        problem(shop.reader.get(f"{shop.base}/versions/{selector}"), "not-found")
    assert shop.reader.get(f"{shop.base}/versions/latest").json()["number"] == 1
    assert [view["number"] for view in shop.reader.get(f"{shop.base}/versions").json()["items"]] == [1]
    shown = shop.reader.get(shop.base).json()
    assert (shown["versions"], shown["latest"]["number"], set(shown["tags"].values())) == (1, 1, {1})
    listed = shop.reader.get(API, params={"kind": "base"}).json()["items"]
    assert [(item["namespace"], item["versions"]) for item in listed] == [(shop.home, 1)]
    refs = shop.reader.get(f"/hf/api/models/{shop.home}/llama/refs").json()
    assert {tag["name"] for tag in refs["tags"]} == {"first", "v1"}
    lineage = shop.reader.get(f"{shop.base}/versions/v1/lineage").json()["nodes"]
    assert set(lineage) == {f"{shop.home}/llama:v1", f"{shop.team}/sql:v1"}
    for path in ("/tags", "/tags/first", "/history"):
        problem(shop.reader.get(shop.base + path), "not-found")
    names = [item["name"] for item in shop.reader.get("/api/v1/namespaces").json()["items"]]
    assert shop.home not in names


def test_what_pins_it_may_be_pushed_and_nothing_there_is_changed(shop: Shop) -> None:
    writer = shop.writer
    made = push(writer, shop.team, "more", "adapter", adapter_files(2), base=f"{shop.home}/llama", accept_base=True)
    assert made.status_code == 201, made.text
    assert made.json()["version"]["base"]["number"] == 1, "the newest that it may read"
    refused = push(writer, shop.team, "more", "adapter", adapter_files(3), base=f"{shop.home}/llama:v2")
    problem(refused, "not-found")
    problem(writer.put(f"{shop.base}/aliases", json={"aliases": ["x"]}), "not-found")
    problem(writer.put(f"{shop.base}/tags/x", json={"target": "v1"}), "not-found")
    problem(writer.delete(f"{shop.base}/versions/v1"), "not-found")


def test_a_stranger_and_the_last_adapter(shop: Shop) -> None:
    problem(shop.stranger.get(f"{shop.base}/versions/v1"), "not-found")
    assert shop.root.delete(f"{API}/{shop.team}/sql").status_code == 204
    problem(shop.reader.get(f"{shop.base}/versions/v1"), "not-found")
    problem(shop.reader.get(shop.base), "not-found")
    assert shop.reader.get(API).json()["items"] == []


def test_an_internal_namespace_is_found_before_anything_pins_it(shop: Shop) -> None:
    """README's recipe: a token of one namespace, and bases that all teams share."""
    problem(shop.stranger.get(shop.base), "not-found")
    shop.site.visibility(shop.home, "internal")
    assert shop.stranger.get(shop.base).json()["versions"] == 2
    assert {move["tag"] for move in shop.stranger.get(f"{shop.base}/history").json()["items"]} == {"first", "second"}
    problem(shop.stranger.put(f"{shop.base}/tags/x", json={"target": "v1"}), "forbidden")
    problem(shop.stranger.post(f"{shop.base}/approvals", json={"version": "v1", "tag": "x"}), "forbidden")
    shop.site.visibility(shop.home, "private")
    problem(shop.stranger.get(shop.base), "not-found")


def test_bases_of_several_namespaces_with_one_alias(shop: Shop) -> None:
    """They resolve if they are the same; if not, the error names those that the caller may read."""
    copy, other, alias = unique("a"), unique("b"), unique("Org/Llama")
    both = shop.site.connect(shop.site.token_with(f"reader:{copy}", f"reader:{other}"))
    one = shop.site.connect(shop.site.token_with(f"reader:{other}"))

    def add(namespace: str, files: dict[str, bytes]) -> dict[str, Any]:
        made = push(shop.root, namespace, "llama", "base", files, aliases=[alias])
        assert made.status_code == 201, made.text
        version: dict[str, Any] = made.json()["version"]
        return version

    assert add(copy, base_files())["digest"] == add(other, base_files())["digest"]
    assert both.get(f"/hf/api/models/{alias}").status_code == 200
    add(other, {**base_files(), "README.md": b"newer"})
    answer = both.get(f"/hf/api/models/{alias}")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert f"{copy}/llama and {other}/llama" in answer.json()["error"]
    assert one.get(f"/hf/api/models/{alias}").status_code == 200
    assert shop.stranger.get(f"/hf/api/models/{alias}").status_code == 404
    both.close()
    one.close()
