"""Gates: what is decided and by what, what moves a tag, and what makes it stay where it is. Real validations by jobs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.registry.conftest import Sites
from tests.registry.site import DATABASES, Site, problem, refuses_changes, unique
from tests.support.adapters import read_folder
from tests.support.command import ALIAS, TINY
from tests.support.push import push
from tests.support.signing import Signer

pytestmark = pytest.mark.worker

API = "/api/v1"
QUERIES = (TINY / "data" / "queries_eval.jsonl").read_bytes()


def first_records(count: int) -> bytes:
    return b"".join(QUERIES.splitlines(keepends=True)[:count])


@dataclass
class Room:
    """A repository with three versions of one adapter, and an evaluation set. The third version is a regression."""

    site: Site
    namespace: str
    data: str

    @property
    def repo(self) -> str:
        return f"{API}/repositories/{self.namespace}/queries"

    def ask(self, version: str, tag: str, **more: Any) -> httpx.Response:
        body = {"version": version, "tag": tag, "data": [self.data], **more}
        return self.site.client.post(f"{self.repo}/gates", json=body)

    def decided(self, version: str, tag: str, **more: Any) -> dict[str, Any]:
        return self._settled(lambda: self.ask(version, tag, **more), lambda body: body)

    def promote(self, version: str, tag: str, **more: Any) -> httpx.Response:
        body = {"version": version, "tag": tag, "data": [self.data], **more}
        return self.site.client.post(f"{self.repo}/promotions", json=body)

    def promoted(self, version: str, tag: str, **more: Any) -> dict[str, Any]:
        return self._settled(lambda: self.promote(version, tag, **more), lambda body: body["gate"])

    def tag(self, tag: str) -> Any:
        answer = self.site.client.get(f"{self.repo}/tags/{tag}")
        return answer.json()["version"]["number"] if answer.status_code == 200 else None

    def set_tag(self, version: str, tag: str) -> httpx.Response:
        return self.site.client.put(f"{self.repo}/tags/{tag}", json={"target": version})

    def sign(self, signer: Signer, number: int) -> None:
        url = f"{self.repo}/versions/v{number}"
        body = signer.of_version(self.namespace, "queries", self.site.client.get(url).json()["digest"])
        answer = self.site.client.post(f"{url}/signatures", json=body)
        assert answer.status_code == 200, answer.text

    def govern(self, tag: str, **document: Any) -> str:
        """A policy for a tag of this repository, on the evaluation set."""
        pattern = f"{self.namespace}/queries:{tag}"
        body = {"name": tag, "quality": {"sets": [self.data]}, **document}
        answer = self.site.client.put(f"{API}/policies", json={"pattern": pattern, "document": body})
        assert answer.status_code == 200, answer.text
        return pattern

    def _settled(self, ask: Any, gate: Any) -> dict[str, Any]:
        answer = ask()
        while answer.status_code == 202:
            for job in gate(answer.json())["jobs"]:
                ended = self.site.until_job(job["id"])
                assert ended["state"] == "done", (ended["error"], self.site.talk())
            answer = ask()
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module", params=DATABASES)
def room(request: pytest.FixtureRequest, sites: Sites) -> Room:
    """A namespace of its own on each database; its versions are validated once, and every test takes its own tags."""
    site = sites(request.param, worker=True)
    namespace = unique("gates")
    made = push(site.client, namespace, "tiny", "base", read_folder(TINY / "base"), aliases=[ALIAS])
    assert made.status_code == 201, made.text
    for number in (1, 2, 3):
        folder = read_folder(TINY / "adapters" / f"queries-v{number}")
        made = push(site.client, namespace, "queries", "adapter", folder, base=f"{namespace}/tiny")
        assert made.status_code == 201, made.text
    made = push(site.client, namespace, "eval", "dataset", {"data.jsonl": QUERIES})
    assert made.status_code == 201, made.text
    assert made.json()["version"]["facts"] == {
        "records": len(QUERIES.splitlines()), "bytes": len(QUERIES), "form": "text"
    }  # fmt: skip
    return Room(site, namespace, f"{namespace}/eval")


def checks(view: dict[str, Any], state: str) -> list[str]:
    return [check["rule"] for check in view["checks"] if check["state"] == state]


def test_a_series_of_versions_earns_its_tag_or_does_not(room: Room) -> None:
    first = room.promoted("v1", "prod")
    assert (first["tag"]["version"]["number"], first["gate"]["holder"], first["gate"]["allowed"]) == (1, None, True)
    second = room.promoted("v2", "prod")
    assert second["tag"]["version"]["number"] == 2
    gate = second["gate"]
    assert (gate["holder_number"], len(gate["reports"])) == (1, 2)
    better = next(check for check in gate["checks"] if check["rule"].endswith(":holder"))
    assert better["evidence"]["high"] < 0
    assert "better than the tag's current target" in better["message"]
    view = room.decided("v3", "prod")
    assert (view["allowed"], view["holder_number"]) == (False, 2)
    assert {rule.rpartition(":")[2] for rule in checks(view, "failed")} == {"base", "holder"}
    refused = problem(room.promote("v3", "prod"), "gate-refused")
    assert [finding["code"] for finding in refused["findings"]] == checks(view, "failed")
    assert room.tag("prod") == 2
    moves = [
        event for event in room.site.events(f"{room.namespace}/queries")
        if event["kind"] == "tag-moved" and event["subject"].endswith(":prod")
    ]  # fmt: skip
    assert [set(move["facts"]["reports"]) for move in moves] == [set(first["gate"]["reports"]), set(gate["reports"])]


def test_what_is_missing_is_started_once_and_told(room: Room) -> None:
    small = f"{room.namespace}/{unique('few')}"
    namespace, name = small.split("/")
    assert push(room.site.client, namespace, name, "dataset", {"data.jsonl": first_records(9)}).status_code == 201
    looked = room.ask("v1", "later", data=[small], start=False)
    assert (looked.status_code, looked.json()["jobs"]) == (202, [])
    pending = room.ask("v1", "later", data=[small])
    assert (pending.status_code, pending.json()["allowed"], pending.json()["decision"]) == (202, None, None)
    (job,) = pending.json()["jobs"]
    assert (job["kind"], room.ask("v1", "later", data=[small]).json()["jobs"][0]["id"]) == ("validate", job["id"])
    asked = room.site.client.post(f"{API}/validations", json={"version": f"{namespace}/queries:v1", "data": [small]})
    assert asked.json()["id"] == job["id"]
    view = room.decided("v1", "later", data=[small])
    assert view["reports"] == [job["id"]]
    again = room.decided("v1", "later", data=[small])
    assert (again["decision"], again["allowed"]) == (view["decision"], True)
    (report,) = [
        item for item in room.site.client.get(f"{room.repo}/versions/v1/reports").json()["items"]
        if item["id"] == job["id"]
    ]  # fmt: skip
    assert (report["passed"], len(report["body"]["evaluations"][0]["nats"])) == (True, 9)
    assert report["body"]["environment"]["torch"]


def test_expected_answers_are_asked_for_and_judged(room: Room) -> None:
    name = unique("answers")
    start = json.loads(QUERIES.splitlines()[0])["text"][:24]
    lines = [{"prompt": start, "expect": expect} for expect in ({"regex": "(.|\\n)*"}, {"exact": "never this"})]
    files = {"data.jsonl": "\n".join(map(json.dumps, lines)).encode()}
    made = push(room.site.client, room.namespace, name, "dataset", files)
    assert made.json()["version"]["facts"]["form"] == "answers"
    data = [room.data, f"{room.namespace}/{name}"]
    view = room.decided("v2", "asked", data=data)
    (rule,) = checks(view, "failed")
    assert (view["allowed"], rule) == (False, f"behaviour:{room.namespace}/{name}")
    lax = {"name": "lax", "behaviour": {"least": 0.5}}
    assert room.decided("v2", "asked", data=data, document=lax)["allowed"]
    problem(room.ask("v2", "asked", document={"forgetting": {"sets": [data[1]]}}), "conflict")


def test_a_governed_tag_moves_by_its_gate_alone(room: Room) -> None:
    tag = unique("governed")
    room.govern(tag)
    problem(room.set_tag("v1", tag), "tag-gated")
    assert room.decided("v1", tag)["allowed"]
    assert room.set_tag("v1", tag).status_code == 200
    assert room.decided("v2", tag)["allowed"]
    assert room.set_tag("v2", tag).status_code == 200
    assert not room.decided("v3", tag)["allowed"]
    problem(room.set_tag("v3", tag), "tag-gated")
    assert room.tag(tag) == 2


def test_a_tag_that_asks_for_a_signature_is_earned_by_one(room: Room) -> None:
    """By `promote`, by `tag` after a gate, and no more once the policy names another key."""
    tag, signer, other = unique("signed"), Signer(), Signer()
    room.govern(tag, signatures={"keys": [signer.pem]})
    refused = problem(room.promote("v1", tag), "gate-refused")
    assert [finding["code"] for finding in refused["findings"]] == ["signatures"]
    problem(room.set_tag("v1", tag), "tag-gated")
    for key in (other, signer):
        problem(room.promote("v1", tag), "gate-refused")
        room.sign(key, 1)
    assert room.promoted("v1", tag)["gate"]["allowed"]
    problem(room.promote("v2", tag), "gate-refused")
    room.sign(signer, 2)
    problem(room.set_tag("v2", tag), "tag-gated")
    assert room.decided("v2", tag)["allowed"]
    room.govern(tag, signatures={"keys": [other.pem]})
    problem(room.set_tag("v2", tag), "tag-gated")
    room.govern(tag, signatures={"keys": [signer.public.text]})
    assert room.set_tag("v2", tag).status_code == 200
    assert room.tag(tag) == 2


def test_a_rollback_goes_where_the_gate_once_let_it(room: Room) -> None:
    tag = unique("back")
    room.govern(tag)
    room.promoted("v1", tag)
    room.promoted("v2", tag)
    back = room.site.client.post(f"{room.repo}/tags/{tag}/rollback", json={})
    assert (back.status_code, room.tag(tag)) == (200, 1)


@pytest.mark.parametrize("what", ["adapter", "base", "set", "policy"])
def test_one_byte_changed_after_the_pass_and_the_tag_stays(room: Room, what: str) -> None:
    client, tag, name = room.site.client, unique("byte"), unique("own")
    data = f"{room.namespace}/{name}-eval"
    assert push(client, *data.split("/"), "dataset", {"data.jsonl": QUERIES}).status_code == 201
    base, other = read_folder(TINY / "base"), read_folder(TINY / "adapters" / "queries-v2")
    assert push(client, room.namespace, f"{name}-base", "base", base).status_code == 201
    own = f"{API}/repositories/{room.namespace}/{name}"

    def pushed(files: dict[str, bytes]) -> int:
        pin = {"base": f"{room.namespace}/{name}-base", "accept_base": True}
        answer = push(client, room.namespace, name, "adapter", files, **pin)
        assert answer.status_code in (200, 201), answer.text
        number: int = answer.json()["version"]["number"]
        return number

    def set_tag(number: int) -> httpx.Response:
        return client.put(f"{own}/tags/{tag}", json={"target": f"v{number}"})

    document = {"name": "own", "quality": {"sets": [data]}}
    pattern = {"pattern": f"{room.namespace}/{name}:{tag}"}
    assert client.put(f"{API}/policies", json={**pattern, "document": document}).status_code == 200
    number = pushed(other)
    gate = {"version": f"v{number}", "tag": tag}
    room._settled(lambda: client.post(f"{own}/gates", json=gate), lambda body: body)
    if what == "adapter":
        number = pushed({**other, "adapter_model.safetensors": flipped(other["adapter_model.safetensors"])})
    elif what == "base":
        shard = "model-00001-of-00002.safetensors"
        changed = {**base, shard: flipped(base[shard])}
        assert push(client, room.namespace, f"{name}-base", "base", changed).status_code == 201
        number = pushed(other)
    elif what == "set":
        changed_set = QUERIES.replace(b"a", b"b", 1)
        assert push(client, *data.split("/"), "dataset", {"data.jsonl": changed_set}).status_code == 201
    else:
        stricter = {**document, "max_rank": 8}
        assert client.put(f"{API}/policies", json={**pattern, "document": stricter}).status_code == 200
    problem(set_tag(number), "tag-gated")
    assert client.post(f"{own}/promotions", json={**gate, "version": f"v{number}"}).status_code in (
        (200, 422) if what == "policy" else (202,)
    )
    if what != "policy":
        assert client.get(f"{own}/tags/{tag}").status_code == 404


@pytest.mark.parametrize("what", ["adapter", "base", "set"])
def test_a_stored_byte_that_changed_after_the_pass_stops_the_tag(room: Room, what: str) -> None:
    """Of the store's own files, behind the service's back."""
    tag = unique("stored")
    room.decided("v1", tag)
    data = {
        "adapter": read_folder(TINY / "adapters" / "queries-v1")["adapter_model.safetensors"],
        "base": read_folder(TINY / "base")["model-00002-of-00002.safetensors"],
        "set": QUERIES,
    }[what]
    digest = hashlib.sha256(data).hexdigest()
    (path,) = (path for path in room.site.data.rglob(digest) if path.is_file())
    path.chmod(0o644)
    try:
        path.write_bytes(flipped(data))
        problem(room.promote("v1", tag), "corrupt")
        assert room.tag(tag) is None
    finally:
        path.write_bytes(data)
    assert room.promote("v1", tag).status_code == 200


def flipped(data: bytes) -> bytes:
    """The same with another last byte but seven: the lowest bits of the last value but one."""
    changed = bytearray(data)
    changed[-8] ^= 1
    return bytes(changed)


def test_of_two_promotions_at_once_one_moves_the_tag(room: Room) -> None:
    tag = unique("raced")
    room.promoted("v1", tag)
    room.decided("v2", tag)
    start = threading.Barrier(4)

    def one(_: int) -> httpx.Response:
        start.wait()
        return room.promote("v2", tag, expect_generation=1)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(one, range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412], [a.text for a in answers]
    moves = room.site.client.get(f"{room.repo}/history", params={"tag": tag}).json()["items"]
    assert [move["to_number"] for move in moves] == [2, 1]


def test_a_force_needs_its_reason_and_is_logged_as_one(room: Room) -> None:
    tag = unique("forced")
    room.govern(tag, max_rank=1)
    problem(room.promote("v1", tag), "gate-refused")
    problem(room.promote("v1", tag, force=True), "invalid-request")
    moved = room.promote("v1", tag, force=True, reason="the demo is at noon")
    assert (moved.status_code, moved.json()["gate"]["allowed"]) == (200, False)
    event = next(e for e in room.site.events(f"{room.namespace}/queries") if e["kind"] == "tag-forced")
    assert event["facts"]["reason"] == "the demo is at noon"
    assert room.tag(tag) == 1


def test_no_gate_decides_by_tasks_that_no_job_runs(room: Room) -> None:
    document = {"behaviour": {"tasks": {"pick.acc": 0.5}}}
    told = room.ask("v1", unique("tasks"), document=document)
    problem(told, "invalid-request")
    assert "which jobs of a registry do not run" in told.json()["detail"]
    assert "validate --local --tasks DIR" in told.json()["hint"]


def test_a_trial_of_a_policy_stores_nothing(room: Room) -> None:
    tag = unique("trial")
    strict = {"name": "strict", "max_rank": 1}
    view = room.decided("v1", tag, document=strict)
    assert (view["allowed"], view["policy_name"], view["decision"]) == (False, "strict", None)
    kind, tried = "gate-decided", f"{room.namespace}/queries:v1"
    told = [e for e in room.site.events(f"{room.namespace}/queries") if e["kind"] == kind and e["subject"] == tried]
    assert all(event["facts"]["tag"] != tag for event in told)


def test_the_most_specific_policy_governs_until_it_is_lifted(room: Room) -> None:
    tag = unique("specific")
    client, wide = room.site.client, f"{room.namespace}/*:{tag}"
    assert client.put(f"{API}/policies", json={"pattern": wide, "document": {"name": "wide"}}).status_code == 200
    narrow = room.govern(tag, name="narrow")
    assert room.decided("v1", tag)["policy_name"] == "narrow"
    room.govern(tag, name="narrower")
    numbers = [item["number"] for item in client.get(f"{API}/policies", params={"pattern": narrow}).json()["items"]]
    assert numbers == [2, 1]
    assert client.put(f"{API}/policies", json={"pattern": narrow, "document": None}).json()["number"] == 3
    assert room.decided("v1", tag)["policy_name"] == "wide"
    assert client.put(f"{API}/policies", json={"pattern": wide, "document": None}).status_code == 200
    assert (room.decided("v1", tag)["policy_name"], room.set_tag("v1", tag).status_code) == ("default", 200)


@pytest.mark.parametrize(
    ("pattern", "document", "code"),
    [
        ("queries:prod", {}, "invalid-request"),
        ("a/b:v3", {}, "invalid-reference"),
        ("a/b:prod", {"max_rank": 0}, "invalid-request"),
        ("a/b:prod", {"surprise": 1}, "invalid-request"),
        ("a/b:prod", {"quality": {"sets": ["a/nothing"]}}, "not-found"),
        ("a/b:prod", {"behaviour": {"tasks": {"pick.acc": 0.5}}}, "invalid-request"),
    ],
)
def test_what_is_no_policy_is_refused(room: Room, pattern: str, document: Any, code: str) -> None:
    problem(room.site.client.put(f"{API}/policies", json={"pattern": pattern, "document": document}), code)


def test_what_cannot_be_gated_is_told(room: Room) -> None:
    client = room.site.client
    body = {"version": "v1", "tag": "prod"}
    problem(client.post(f"{API}/repositories/{room.namespace}/tiny/gates", json=body), "conflict")
    problem(room.ask("v9", "prod"), "not-found")
    problem(room.ask("v1", "v2"), "invalid-reference")
    problem(room.ask("v1", "prod", data=[f"{room.namespace}/tiny"]), "conflict")
    problem(room.ask("v1", "prod", data=[f"{room.namespace}/none"]), "not-found")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"other.jsonl": QUERIES}, "data.jsonl"),
        ({"data.jsonl": b""}, "record"),
        ({"data.jsonl": b'{"text": "a"}\n[]\n'}, "ine 2"),
        ({"data.jsonl": b'{"text": "' + b"a" * (2 << 20)}, "bytes"),
    ],
)
def test_what_is_no_evaluation_set_is_refused(room: Room, files: dict[str, bytes], said: str) -> None:
    body = problem(push(room.site.client, room.namespace, unique("bad"), "dataset", files), "rejected")
    assert said in json.dumps(body)


def test_the_database_keeps_what_was_decided(room: Room) -> None:
    room.decided("v1", unique("kept"))
    for table in ("report", "decision"):
        refuses_changes(room.site.database, f"update {table} set body = ''", f"delete from {table}")


@pytest.fixture
def closed(sites: Sites, database: str) -> Iterator[Site]:
    yield sites(database, auth="token")


def test_approvals_are_of_others(closed: Site) -> None:
    namespace = unique("approved")
    people = {
        name: closed.connect(closed.token(role, namespace))
        for name, role in (("ann", "admin"), ("wim", "writer"), ("rea", "reader"))
    }
    ann, wim, rea = people.values()
    assert push(ann, namespace, "tiny", "base", read_folder(TINY / "base")).status_code == 201
    adapter = read_folder(TINY / "adapters" / "queries-v1")
    assert (
        push(wim, namespace, "queries", "adapter", adapter, base=f"{namespace}/tiny", accept_base=True).status_code
        == 201
    )
    document = {"name": "two", "max_rank": 64, "approvals": {"count": 1, "role": "writer"}}
    rule = {"pattern": f"{namespace}/queries:prod", "document": document}
    problem(wim.put(f"{API}/policies", json=rule), "forbidden")
    problem(ann.put(f"{API}/policies", json={**rule, "pattern": "*/queries:prod"}), "not-found")
    assert ann.put(f"{API}/policies", json=rule).status_code == 200
    repo, body = f"{API}/repositories/{namespace}/queries", {"version": "v1", "tag": "prod"}
    problem(rea.post(f"{repo}/gates", json=body), "forbidden")
    problem(rea.post(f"{repo}/promotions", json=body), "forbidden")
    problem(wim.post(f"{repo}/promotions", json={**body, "force": True, "reason": "now"}), "forbidden")

    def approvals() -> str:
        checks = wim.post(f"{repo}/gates", json={**body, "start": False}).json()["checks"]
        return next(check["state"] for check in checks if check["rule"] == "approvals")

    assert approvals() == "failed"
    for person in (wim, rea):
        assert person.post(f"{repo}/approvals", json=body).status_code == 200
        assert approvals() == "failed"  # of the one who asks, and of one whose role does not count
    assert ann.post(f"{repo}/approvals", json=body).json()["role"] == "admin"
    assert approvals() == "passed"
    for person in people.values():
        person.close()
