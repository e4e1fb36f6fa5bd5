"""What a caller may not read is named to him nowhere: not where it was an input, nor where it is in the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from sqlmodel import select

from lora_contract.policy import DEFAULT
from lora_contract.validation import Evaluation, LayerResult, Validation
from lora_registry.context import Context
from lora_registry.db.tables import ReportRow, Repository, TagMove, Version, VersionEdge
from lora_registry.jobs import enqueue
from lora_registry.policies.datasets import validation_key
from lora_registry.wiring import open_context
from tests.registry.conftest import Sites
from tests.registry.site import Site, adapter_files, base_files, problem, unique
from tests.support.push import push

API = "/api/v1"
SECRET = "secret"


@dataclass
class Two:
    """`secret-…`, which the reader of `open` may not read; the author may both, and made things of `open` from it."""

    site: Site
    secret: str
    open: str
    author: httpx.Client
    reader: httpx.Client
    owner: httpx.Client

    @property
    def repo(self) -> str:
        return f"{API}/repositories/{self.open}/sql"

    def hidden_from(self, answer: httpx.Response, client: httpx.Client | None = None) -> str:
        """Check that an answer to the reader names nothing secret, and that the author's names it."""
        assert answer.status_code in (200, 202), answer.text
        assert SECRET not in answer.text, answer.text
        again = self.author.request(answer.request.method, answer.request.url)
        assert self.secret in again.text, "nothing to hide"
        return answer.text


@pytest.fixture
def two(sites: Sites, database: str) -> Iterator[Two]:
    site = sites(database, auth="token")
    secret, home = unique(SECRET), unique("open")
    clients = [
        site.connect(site.token_with(*grants))
        for grants in ((f"admin:{secret}", f"admin:{home}"), (f"maintainer:{home}",), (f"admin:{secret}",))
    ]
    two = Two(site, secret, home, *clients)
    made = push(two.author, home, "llama", "base", base_files())
    assert made.status_code == 201, made.text
    base = f"{home}/llama"
    assert push(two.author, secret, "draft", "adapter", adapter_files(1), base=base, accept_base=True).is_success
    more = {"parents": [f"{secret}/draft"], "accept_base": True}
    made = push(two.author, home, "sql", "adapter", adapter_files(2), base=base, **more)
    assert made.status_code == 201, made.text
    yield two
    for client in clients:
        client.close()


def test_parents_and_lineage(two: Two) -> None:
    shown = json.loads(two.hidden_from(two.reader.get(f"{two.repo}/versions/v1")))
    assert shown["parents"] == []
    two.hidden_from(two.reader.get(f"{two.repo}/versions"))
    two.hidden_from(two.reader.get(f"{two.repo}/versions/v1/lineage"))
    two.hidden_from(two.reader.get(f"{API}/repositories/{two.open}/llama/versions/v1/lineage"))


def test_titles_of_jobs(two: Two) -> None:
    draft, own = f"{two.secret}/draft:v1", f"{two.open}/sql:v1"
    assert push(two.author, two.secret, "eval", "dataset", {"data.jsonl": b'{"text": "a"}\n'}).is_success
    requests = {
        "merges": {"adapters": [{"adapter": own}, {"adapter": draft}], "to": f"{two.open}/m"},
        "resizes": {"adapter": draft, "rank": 1, "to": f"{two.open}/r"},
        "diffs": {"before": draft, "after": own},
        "validations": {"version": own, "data": [f"{two.secret}/eval"]},
    }
    for route, body in requests.items():
        job = two.author.post(f"{API}/{route}", json=body).json()["id"]
        shown = json.loads(two.hidden_from(two.reader.get(f"{API}/jobs/{job}")))
        assert "(hidden)" in shown["title"]
        assert two.open in shown["title"]
    two.hidden_from(two.reader.get(f"{API}/jobs"))


def test_an_extraction_does_not_name_its_base(two: Two) -> None:
    for name in ("llama", "tuned"):
        assert push(two.author, two.secret, name, "base", {**base_files(), "README.md": name.encode()}).is_success
    body = {"tuned": f"{two.secret}/tuned", "base": f"{two.secret}/llama", "rank": 1, "to": f"{two.open}/extracted"}
    job = two.author.post(f"{API}/extractions", json=body).json()["id"]
    two.hidden_from(two.reader.get(f"{API}/jobs/{job}"))


def test_what_keeps_a_version_is_counted(two: Two) -> None:
    detail = problem(two.owner.delete(f"{API}/repositories/{two.secret}/draft/versions/v1"), "in-use")["detail"]
    assert detail == f"1 version was derived from {two.secret}/draft:v1."
    detail = problem(two.owner.delete(f"{API}/repositories/{two.secret}/draft"), "in-use")["detail"]
    assert detail == f"1 version was derived from {two.secret}/draft."
    detail = problem(two.author.delete(f"{API}/repositories/{two.secret}/draft"), "in-use")["detail"]
    assert detail == f"1 version was derived from {two.secret}/draft: {two.open}/sql:v1."
    body = problem(two.reader.delete(f"{API}/repositories/{two.open}/llama/versions/v1"), "in-use")
    assert body["detail"] == f"2 versions were derived from {two.open}/llama:v1: {two.open}/sql:v1 and others."
    assert SECRET not in json.dumps(body)


def test_policies(two: Two) -> None:
    assert push(two.author, two.secret, "eval", "dataset", {"data.jsonl": b'{"text": "a"}\n'}).is_success
    sets = {"sets": [f"{two.secret}/eval"], "highest": {f"{two.secret}/eval": 3.0}}
    rule = {"pattern": f"{two.open}/sql:prod", "document": {"name": "p", "quality": sets}}
    assert two.author.put(f"{API}/policies", json=rule).status_code == 200
    with two.site.connect(two.site.token("admin")) as root:
        wide = {"pattern": f"{two.secret}*/*:prod", "document": {"name": "w"}}
        assert root.put(f"{API}/policies", json=wide).status_code == 200
    found = json.loads(two.hidden_from(two.reader.get(f"{API}/policies")))["items"]
    assert [item["document"]["quality"]["sets"] for item in found] == [["(hidden)"]]
    two.hidden_from(two.reader.get(f"{API}/policies", params={"pattern": rule["pattern"]}))
    assert two.reader.get(f"{API}/policies", params={"pattern": wide["pattern"]}).json()["items"] == []
    refused = problem(two.reader.post(f"{two.repo}/gates", json={"version": "v1", "tag": "prod"}), "not-found")
    assert SECRET not in json.dumps(refused)


def test_a_hidden_evaluation_set_in_reports_events_and_histories(two: Two) -> None:
    """The report is planted: no worker runs here."""
    assert push(two.author, two.secret, "eval", "dataset", {"data.jsonl": b'{"text": "a"}\n'}).is_success
    ctx = open_context(two.site.config())
    try:
        _plant_report(ctx, two)
    finally:
        ctx.jobs.close()
    body = {"version": "v1", "tag": "prod", "data": [f"{two.secret}/eval"]}
    told = two.author.post(f"{two.repo}/promotions", json=body)
    assert told.status_code == 200, told.text
    assert f"On {two.secret}/eval it is better" in told.json()["gate"]["reason"]
    shown = json.loads(two.hidden_from(two.reader.get(f"{two.repo}/versions/v1/reports")))
    assert shown["items"][0]["body"]["evaluations"][0]["name"] == "(hidden)"
    for path in ("/history", "/tags"):
        assert SECRET not in two.reader.get(two.repo + path).text
    events = two.reader.get(f"{API}/events").json()["items"]
    assert {"gate-decided", "tag-moved"} <= {event["kind"] for event in events}
    assert SECRET not in json.dumps(events)
    assert "it is better than the base" in next(e for e in events if e["kind"] == "gate-decided")["facts"]["reason"]
    with ctx.db.read() as session:
        assert [move for move in session.exec(select(TagMove)) if SECRET in move.reason] == []


def _plant_report(ctx: Context, two: Two) -> None:
    with ctx.db.write() as session:

        def newest(namespace: str, name: str) -> Version:
            query = select(Version).join(Repository, Repository.id == Version.repository_id)  # type: ignore[arg-type]
            return session.exec(query.where(Repository.namespace == namespace, Repository.name == name)).one()

        version, base = newest(two.open, "sql"), newest(two.open, "llama")
        data = newest(two.secret, "eval")
        sets = {"quality": [data.digest], "forgetting": [], "behaviour": []}
        key = validation_key(version, base, DEFAULT.precision, sets)  # type: ignore[arg-type]
        losses = [400.0 + number for number in range(20)]
        report = Validation(
            version=version.digest,
            base=base.digest,
            precision=key.precision,
            datasets=sets,  # type: ignore[arg-type]
            environment={},
            layers={layer: LayerResult("passed") for layer in DEFAULT.blocking},
            evaluations=[
                Evaluation(
                    data.digest, f"{two.secret}/eval:v1", "quality", [x - 50 for x in losses], losses, [100] * 20
                )
            ],
        )
        session.add(VersionEdge(child_id=version.id, parent_id=data.id, relation="evaluated-on"))
        session.add(
            ReportRow(
                id=enqueue.validation_job_id(version, key),
                kind="validate",
                version_id=version.id,
                passed=True,
                body=report.to_bytes().decode(),
                created_at=version.created_at,
            )
        )
