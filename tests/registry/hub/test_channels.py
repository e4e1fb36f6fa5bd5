"""A channel is an endpoint of its own: inference servers that can name no revision get the tag as their `main`."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.registry.hub.clients import VERSIONS, python_with, run
from tests.registry.hub.conftest import World
from tests.support.push import push


def test_a_channel_serves_its_tag_and_every_base(world: World, tmp_path: Path) -> None:
    one, two, three = (item["commit"] for item in world.push_series("staged"))
    wanted = [
        {"repo_id": "hub/staged"},
        {"repo_id": "hub/staged", "revision": "candidate"},
        {"repo_id": "hub/staged", "revision": three},
        {"repo_id": "hub/staged.v3"},
        {"repo_id": "tiny", "allow_patterns": ["config.json"]},
        {"repo_id": "Some.Org/Tiny-Llama", "allow_patterns": ["config.json"]},
        {"repo_id": "hub/nothing"},
    ]
    seen = run(
        python_with(VERSIONS[0]), "hub_fetch.py", {"wanted": wanted},
        endpoint=f"{world.hub}/channels/prod", home=tmp_path,
    )  # fmt: skip
    assert [item.get("commit") for item in seen[:4]] == [one, two, three, three]
    assert [list(item["files"]) for item in seen[4:6]] == [["config.json"], ["config.json"]]
    assert seen[4]["commit"] == seen[5]["commit"]
    assert seen[6]["error"] == "RepositoryNotFoundError"


def test_an_adapter_without_the_tag_is_not_in_the_channel(world: World) -> None:
    world.push_series("unstaged")
    info = httpx.get(f"{world.hub}/channels/beta/api/models/hub/unstaged")
    assert (info.status_code, info.headers["x-error-code"]) == (404, "RevisionNotFound")
    assert "no tag 'beta'" in info.json()["error"]
    refs = httpx.get(f"{world.hub}/channels/beta/api/models/hub/unstaged/refs").json()
    assert refs["branches"] == []
    assert httpx.get(f"{world.hub}/channels/beta/api/models/tiny").status_code == 200


def test_a_base_with_the_tag_is_served_at_it(world: World) -> None:
    base = {path.name: path.read_bytes() for path in (world.testbed / "base").iterdir()}
    first = push(world.client, "hub", "base", "base", base, tags=["prod"]).json()["version"]
    second = push(world.client, "hub", "base", "base", {**base, "README.md": b"# newer\n"}).json()["version"]
    assert first["number"] == 1 and second["number"] == 2
    assert httpx.get(f"{world.hub}/channels/prod/api/models/hub/base").json()["sha"] == first["commit"]
    assert httpx.get(f"{world.hub}/channels/beta/api/models/hub/base").json()["sha"] == second["commit"]
