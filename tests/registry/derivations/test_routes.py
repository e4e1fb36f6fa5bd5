"""Versions derived by jobs: what goes in, what comes out, who may, and the same thing asked for again."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa

from lora_contract.roles import Grant
from lora_registry import settings
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.repositories import provenance
from lora_registry.repositories.paths import RepositoryPath, VersionPath
from lora_registry.wiring import open_context
from tests.registry.site import SHARED, Site, problem, unique
from tests.support import service

pytestmark = pytest.mark.worker


def asked(site: Site, path: str, **body: Any) -> dict[str, Any]:
    """Ask for a job and wait until it is done."""
    answer = site.client.post(f"/api/v1/{path}", json=body)
    assert answer.status_code in (200, 202), answer.text
    job = site.until_job(answer.json()["id"])
    assert job["state"] == "done", (job["error"], site.talk())
    return job


def adapter(site: Site, seed: int) -> str:
    name = unique("d")
    site.pushed("ns", name, seed)
    return f"ns/{name}"


def shown(site: Site, name: str, what: str = "") -> Any:
    return site.client.get(f"/api/v1/repositories/{name}/versions/v1{what}").json()


def requests(site: Site) -> list[tuple[str, str, dict[str, Any], list[str]]]:
    """(kind of the job, path, body without the target, what goes in) of every operation whose result is an adapter."""
    one, two = adapter(site, 61), adapter(site, 71)
    merged = f"ns/{unique('merged')}"
    asked(site, "merges", adapters=[{"adapter": one}], to=merged, dtype="float32")
    weighted = [{"adapter": one, "weight": 0.5}, {"adapter": two, "weight": -0.25}]
    return [
        ("compose", "compositions", {"adapters": weighted, "method": "svd", "parameters": {"rank": 3}}, [one, two]),
        ("extract", "extractions", {"tuned": merged, "base": f"{SHARED}/base", "rank": 2}, [merged]),
        ("resize", "resizes", {"adapter": one, "rank": 1}, [one]),
        ("convert", "conversions", {"adapter": one}, [one]),
    ]


def test_each_operation_makes_a_version_with_lineage_and_report(site: Site) -> None:
    for kind, path, body, made_from in requests(site):
        out = f"ns/{unique(kind)}"
        job = asked(site, path, **body, to=out, tags=["fresh"], message="made")
        assert (job["kind"], job["result"]["kind"], job["result"]["number"]) == (kind, "adapter", 1)
        assert job["recipe"]["operation"] == kind
        version = shown(site, out)
        assert (version["message"], version["tags"]) == ("made", ["fresh"])
        assert version["base"]["digest"] == shown(site, f"{SHARED}/base")["digest"]
        assert [f"{parent['namespace']}/{parent['name']}" for parent in version["parents"]] == made_from
        assert version["recipe"]["digest"] == job["recipe"]["digest"]
        assert version["facts"]["peft_type"] == "LORA"
        assert version["facts"]["modules"] == 4
        assert {file["path"] for file in version["files"]} >= {"adapter_config.json", "adapter_model.safetensors"}
        (report,) = [item for item in shown(site, out, "/reports")["items"] if item["kind"] == kind]
        assert (report["passed"], len(report["body"]["modules"])) == (True, 4)
        again = site.client.post(f"/api/v1/{path}", json={**body, "to": out, "tags": ["later"]})
        assert (again.status_code, again.json()["id"], again.json()["result"]["number"]) == (200, job["id"], 1)
        assert sorted(shown(site, out)["tags"]) == ["fresh", "later"]
        inspected = [j for j in site.client.get("/api/v1/jobs").json()["items"] if j["title"] == f"inspect {out}:v1"]
        assert len(inspected) == 1


def test_provenance_does_not_name_what_a_caller_may_not_read(site: Site) -> None:
    one, small = adapter(site, 64), f"alone/{unique('small')}"
    asked(site, "resizes", adapter=one, rank=1, to=small)
    path = VersionPath(RepositoryPath(*small.split("/")), "v1")
    ctx = open_context(settings.load(service.environment(site.data, site.extra)))
    # Who may read an adapter may read its base.
    for pattern, names in (("*", [f"{SHARED}/base:v1", f"{one}:v1"]), ("alone", [f"{SHARED}/base:v1", None])):
        statement = provenance.show(Caller(ctx, Principal("x", (Grant(pattern, "reader"),))), path)
        dependencies = json.loads(statement)["predicate"]["buildDefinition"]["resolvedDependencies"]
        assert [dependency.get("name") for dependency in dependencies] == names
    ctx.db.engine.dispose()


def test_a_derived_adapter_is_an_input_like_any_other(site: Site) -> None:
    one, small, merged = adapter(site, 62), f"ns/{unique('small')}", f"ns/{unique('out')}"
    asked(site, "resizes", adapter=one, rank=1, to=small)
    job = asked(site, "merges", adapters=[{"adapter": small}], to=merged, allow_loss=True)
    lineage = shown(site, merged, "/lineage")
    assert {f"{small}:v1", f"{one}:v1", f"{SHARED}/base:v1"} <= lineage["nodes"].keys()
    assert job["state"] == "done"


def test_the_same_recipe_has_the_same_bytes(site: Site) -> None:
    """Of two jobs: the second one runs because the result of the first was deleted."""
    for _, path, body, _ in requests(site):
        out = f"ns/{unique('twice')}"
        first = asked(site, path, **body, to=out)
        assert site.client.delete(f"/api/v1/repositories/{out}/versions/v1").status_code == 204
        second = asked(site, path, **body, to=out)
        assert second["id"] == first["id"] + "-2"
        assert second["result"]["digest"] == first["result"]["digest"]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("resizes", {"adapter": "{one}"}, "invalid-request"),
        ("resizes", {"adapter": "{one}", "rank": 1, "keep_energy": 0.5}, "invalid-request"),
        ("resizes", {"adapter": "{one}", "rank": 0}, "invalid-request"),
        ("resizes", {"adapter": "{one}", "keep_energy": 1.5}, "invalid-request"),
        ("resizes", {"adapter": "{base}", "rank": 1}, "conflict"),
        ("resizes", {"adapter": "ns/nothing", "rank": 1}, "not-found"),
        ("resizes", {"adapter": "{one}", "rank": 1, "to": "{base}"}, "conflict"),
        ("resizes", {"adapter": "{one}", "rank": 1, "to": "ns/x:v3"}, "invalid-reference"),
        ("conversions", {"adapter": "{one}", "rank": 1}, "invalid-request"),
        ("extractions", {"tuned": "{one}", "base": "{base}", "rank": 1}, "conflict"),
        ("compositions", {"adapters": [{"adapter": "ns/nobody"}], "method": "svd"}, "not-found"),
        ("compositions", {"adapters": [], "method": "svd"}, "invalid-request"),
        ("compositions", {"adapters": [{"adapter": "ns/x"}], "method": "magic"}, "invalid-request"),
        ("compositions", {"adapters": [], "method": "svd", "parameters": {"density": 0.5}}, "invalid-request"),
        ("compositions", {"adapters": [], "method": "ties", "parameters": {"density": 2}}, "invalid-request"),
        ("compositions", {"adapters": [], "method": "svd", "seed": 3}, "invalid-request"),
        ("extractions", {"tuned": "{base}", "base": "{one}", "rank": 1}, "conflict"),
        ("extractions", {"tuned": "{base}", "base": "{base}"}, "invalid-request"),
        ("extractions", {"tuned": "{base}", "base": "{base}", "rank": 1, "max_rank": 2}, "invalid-request"),
        ("extractions", {"tuned": "{base}", "base": "{base}", "rank": 1, "seed": -1}, "invalid-request"),
    ],
)
def test_what_makes_no_sense_is_refused_before_there_is_a_job(
    site: Site, path: str, body: dict[str, Any], code: str
) -> None:
    names = {"one": adapter(site, 63), "base": f"{SHARED}/base"}
    given = {key: value.format(**names) if isinstance(value, str) else value for key, value in body.items()}
    before = site.client.get("/api/v1/jobs").json()["items"][0]["id"]
    problem(site.client.post(f"/api/v1/{path}", json={"to": f"ns/{unique('x')}", **given}), code)
    assert site.client.get("/api/v1/jobs").json()["items"][0]["id"] == before


def test_what_cannot_be_done_fails_with_its_own_code(site: Site) -> None:
    body = {"tuned": f"{SHARED}/base", "base": f"{SHARED}/base", "rank": 1, "targets": ["nothing_proj"]}
    job = site.until_job(site.client.post("/api/v1/extractions", json={**body, "to": "ns/x"}).json()["id"])
    assert (job["state"], job["error_code"]) == ("failed", "invalid-request")
    assert "nothing_proj" in job["error"]


def test_an_idempotency_key_belongs_to_one_request(site: Site) -> None:
    one, key = adapter(site, 64), {"Idempotency-Key": unique("key")}
    body = {"adapter": one, "rank": 1, "to": f"ns/{unique('k')}"}
    first = site.client.post("/api/v1/resizes", json=body, headers=key)
    again = site.client.post("/api/v1/resizes", json=body, headers=key)
    assert first.json()["id"] == again.json()["id"]
    problem(site.client.post("/api/v1/resizes", json={**body, "rank": 2}, headers=key), "idempotency-mismatch")


def reproduced(site: Site, name: str) -> dict[str, Any]:
    answer = site.client.post("/api/v1/reproductions", json={"version": name})
    assert answer.status_code == 202, answer.text
    job = site.until_job(answer.json()["id"])
    assert job["state"] == "done", (job["error"], site.talk())
    found: dict[str, Any] = next(item for item in shown(site, name, "/reports")["items"] if item["id"] == job["id"])
    return found


def test_a_reproduction_tells_what_came_out_otherwise(site: Site) -> None:
    """The version's record is changed behind the service's back: the recipe then gives other bytes than are recorded."""
    out = f"ns/{unique('again')}"
    asked(site, "resizes", adapter=adapter(site, 65), rank=1, to=out)
    report = reproduced(site, out)
    assert (report["passed"], report["body"]["operation"]) == (True, "resize")
    assert all(file["expected"] == file["found"] for file in report["body"]["files"])
    engine, nowhere = sa.create_engine(site.database), "sha256:" + "0" * 64
    with engine.begin() as connection:
        absent = (
            "insert into blob (digest, size, created_at, state, life, verified_at) values (:d, 0, 0, 'absent', '', 0)"
        )
        connection.execute(sa.text(absent), {"d": nowhere})
        changed = connection.execute(
            sa.text(
                "update version_blob set digest = :digest where path = 'adapter_model.safetensors' and version_id in "
                "(select v.id from version v join repository r on r.id = v.repository_id where r.name = :name)"
            ),
            {"digest": nowhere, "name": out.partition("/")[2]},
        )
    engine.dispose()
    assert changed.rowcount == 1
    report = reproduced(site, out)
    differing = [file["path"] for file in report["body"]["files"] if file["expected"] != file["found"]]
    assert (report["passed"], differing) == (False, ["adapter_model.safetensors"])


def test_what_is_compared_and_reproduced(site: Site) -> None:
    one = adapter(site, 66)
    problem(site.client.post("/api/v1/reproductions", json={"version": one}), "conflict")
    problem(site.client.post("/api/v1/diffs", json={"before": one, "after": f"{SHARED}/base"}), "conflict")
    problem(site.client.post("/api/v1/diffs", json={"before": one, "after": "ns/nothing"}), "not-found")
    first = site.client.post("/api/v1/diffs", json={"before": one, "after": one}).json()
    assert site.client.post("/api/v1/diffs", json={"before": one, "after": one}).json()["id"] == first["id"]
