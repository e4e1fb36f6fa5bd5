"""The table of roles, where a route alone does not say what is needed: protected tags."""

from __future__ import annotations

from tests.registry.conftest import Sites
from tests.registry.site import adapter_files, base_files, problem, unique
from tests.support.push import push


def test_a_protected_tag_is_moved_by_maintainers_alone(sites: Sites, database: str) -> None:
    site, team = sites(database, auth="token"), unique("team")
    with site.connect(site.token("writer", team)) as writer, site.connect(site.token("maintainer", team)) as maintainer:
        assert push(writer, team, "base", "base", base_files()).status_code == 201
        pushed = {"base": f"{team}/base", "accept_base": True}
        for seed in (1, 2):
            made = push(writer, team, "sql", "adapter", adapter_files(seed), **pushed)
            assert made.status_code == 201, made.text
        tag = f"/api/v1/repositories/{team}/sql/tags/prod"
        for target in ("v1", "v2"):
            assert writer.put(tag, json={"target": target}).status_code == 200
        problem(writer.put(f"{tag}/protection", json={"protected": True}), "forbidden")
        assert maintainer.put(f"{tag}/protection", json={"protected": True}).status_code == 200
        etag = {"If-Match": writer.get(tag).headers["etag"]}
        for given in ({}, etag):
            problem(writer.put(tag, json={"target": "v1"}, headers=given), "forbidden")
            problem(writer.post(f"{tag}/rollback", json={}, headers=given), "forbidden")
            problem(writer.delete(tag, headers=given), "forbidden")
        problem(push(writer, team, "sql", "adapter", adapter_files(3), **pushed, tags=["prod"]), "forbidden")
        problem(maintainer.put(tag, json={"target": "v1"}), "tag-protected")
        assert maintainer.put(tag, json={"target": "v1"}, headers=etag).json()["version"]["number"] == 1
        assert maintainer.post(f"{tag}/rollback", json={}).json()["version"]["number"] == 2
        forced = {"version": "v1", "tag": "prod", "force": True, "reason": "now"}
        problem(maintainer.post(f"/api/v1/repositories/{team}/sql/promotions", json=forced), "forbidden")
        problem(maintainer.delete(f"/api/v1/repositories/{team}/sql"), "forbidden")
