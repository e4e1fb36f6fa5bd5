"""Who may do what: every route against every kind of caller, and nothing learned about what may not be read."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_contract.roles import Visibility
from lora_registry.app import create_app
from lora_registry.settings import ServiceSettings
from lora_registry.wiring import open_context
from tests.registry.conftest import Sites
from tests.registry.site import Site, adapter_files, base_files, problem, unique
from tests.support import service
from tests.support.push import describe, push, upload
from tests.support.signing import Signer

ROLES = ("anonymous", "reader", "writer", "maintainer", "admin", "stranger", "visitor")
"""stranger: an administrator of another namespace. visitor: a reader of another one."""
OUTSIDERS = ("anonymous", "stranger", "visitor")


@dataclass
class Row:
    """A route and the least role that may use it.

    body: what makes the request a sensible one. free: open to all. below: what weaker roles are answered. everyone: what
    all are answered, whatever their role. closed: also in an internal or public namespace it needs a grant. The least
    role `root` is that of an administrator of all namespaces.
    """

    method: str
    path: str
    least: str
    body: Any = None
    free: bool = False
    below: str = "forbidden"
    everyone: str | None = None
    closed: bool = False
    allowed: set[int] = field(default_factory=lambda: {200, 201, 202, 204})


REPO = "/api/v1/repositories/{namespace}/{name}"
VERSION = REPO + "/versions/{selector}"
TAG = REPO + "/tags/{tag}"
ROWS = [
    Row("GET", "/healthz", "anonymous", free=True),
    Row("GET", "/readyz", "anonymous", free=True),
    Row("GET", "/api/v1/token-exchange/audience", "anonymous", free=True),
    Row("GET", "/api/v1/login-options", "anonymous", free=True),
    Row("POST", "/api/v1/token-exchange", "anonymous", {"token": "x"}, everyone="unauthenticated"),
    Row("DELETE", "/api/v1/token-exchange", "reader", free=True, closed=True),
    Row("GET", "/api/v1/trust-rules", "root", allowed={200}),
    Row("POST", "/api/v1/trust-rules", "root", "trust", allowed={201}),
    Row("DELETE", "/api/v1/trust-rules/{rule}", "root", allowed={404}),
    Row("GET", "/api/v1/whoami", "reader", free=True, closed=True),
    Row("GET", "/api/v1/repositories", "reader", free=True),
    Row("GET", "/api/v1/jobs", "reader", free=True, closed=True),
    Row("GET", "/api/v1/events", "reader", free=True, closed=True),
    Row("GET", "/api/v1/namespaces", "reader", free=True),
    Row("GET", "/api/v1/namespaces/{namespace}", "reader"),
    Row("PUT", "/api/v1/namespaces/{namespace}", "admin", {"visibility": "private"}),
    Row("PUT", "/api/v1/namespaces/{namespace}/quota", "root", {}),
    Row("GET", "/api/v1/tokens", "reader", free=True, closed=True),
    Row("DELETE", "/api/v1/tokens/{token}", "admin", below="not-found"),
    Row("PUT", "/api/v1/tokens/{token}", "admin", {}, below="not-found"),
    Row("GET", REPO, "reader"),
    Row("GET", REPO + "/versions", "reader"),
    Row("GET", VERSION, "reader"),
    Row("GET", VERSION + "/manifest", "reader"),
    Row("GET", VERSION + "/files/{path}", "reader"),
    Row("GET", VERSION + "/fingerprint", "reader", allowed={404}),
    Row("GET", VERSION + "/lineage", "reader"),
    Row("GET", VERSION + "/provenance", "reader", allowed={404}),  # pushed, and not derived
    Row("GET", VERSION + "/reports", "reader"),
    Row("GET", VERSION + "/signatures", "reader"),
    Row("POST", VERSION + "/signatures", "writer", "sign"),
    Row("GET", REPO + "/tags", "reader"),
    Row("GET", TAG, "reader"),
    Row("GET", REPO + "/history", "reader"),
    Row("GET", "/api/v1/uploads/{upload_id}", "writer"),
    Row("GET", "/api/v1/jobs/{job_id}", "reader"),
    Row("GET", "/api/v1/jobs/{job_id}/progress", "reader"),
    Row("PUT", REPO + "/aliases", "writer", {"aliases": ["x"]}, allowed={409}),
    Row("PUT", VERSION + "/yank", "maintainer", {"reason": "bad"}),
    Row("DELETE", VERSION + "/yank", "maintainer"),
    Row("GET", REPO + "/deletion", "maintainer"),
    Row("GET", VERSION + "/deletion", "maintainer"),
    Row("PUT", VERSION + "/restoration", "maintainer", allowed={409}),  # it is not deleted
    Row("GET", REPO + "/retention", "maintainer"),
    Row("PUT", REPO + "/retention", "maintainer", {"keep_last": None}),
    Row("PUT", TAG, "writer", {"target": "v1"}),
    Row("POST", TAG + "/rollback", "writer", {}, allowed={200, 409}),
    Row("PUT", TAG + "/protection", "maintainer", {"protected": False}),
    Row("POST", "/api/v1/uploads", "writer", "upload"),
    Row("PUT", "/api/v1/uploads/{upload_id}/blobs/{digest}", "writer", "blob"),
    Row("GET", "/api/v1/uploads/{upload_id}/blobs/{digest}/parts", "writer", allowed={400}),
    Row("POST", "/api/v1/uploads/{upload_id}/blobs/{digest}/parts", "writer", {"parts": []}, allowed={400}),
    Row("PUT", "/api/v1/uploads/{upload_id}/blobs/{digest}/parts/{number}", "writer", "blob", allowed={400}),
    Row("POST", "/api/v1/uploads/{upload_id}/blobs/{digest}/complete", "writer", allowed={204, 404}),
    Row("POST", REPO + "/versions", "writer", "commit"),
    Row("POST", "/api/v1/merges", "writer", "merge"),
    Row("POST", "/api/v1/compositions", "writer", "compose"),
    Row("POST", "/api/v1/extractions", "writer", "extract"),
    Row("POST", "/api/v1/resizes", "writer", "resize"),
    Row("POST", "/api/v1/base-resizes", "writer", "resize-base"),
    Row("POST", "/api/v1/conversions", "writer", "convert"),
    Row("POST", "/api/v1/diffs", "writer", "diff"),
    Row("POST", "/api/v1/reproductions", "writer", "validate", allowed={409}),  # pushed, and not derived
    Row("POST", "/api/v1/validations", "writer", "validate"),
    Row("GET", "/api/v1/policies", "reader", free=True),
    Row("PUT", "/api/v1/policies", "maintainer", "policy"),
    Row("POST", REPO + "/gates", "writer", {"version": "v1", "tag": "u", "start": False}),
    Row("POST", REPO + "/approvals", "reader", {"version": "v1", "tag": "u"}),
    Row("POST", REPO + "/promotions", "writer", {"version": "v1", "tag": "u"}),
    Row("POST", "/api/v1/jobs/{job_id}/cancel", "writer"),
    Row("POST", "/api/v1/jobs/{job_id}/retry", "writer", allowed={200, 409}),
    Row("DELETE", "/api/v1/uploads/{upload_id}", "writer"),
    Row("DELETE", TAG, "writer"),
    Row("DELETE", VERSION, "maintainer"),
    Row("DELETE", REPO, "admin", allowed={409}),  # allowed, but for its tag
]
RANK = {role: rank for rank, role in enumerate((*OUTSIDERS, "reader", "writer", "maintainer", "admin"))}


@dataclass
class Guarded:
    """A service that asks for tokens, with one client a role; all tokens but the outsiders' are for one namespace."""

    site: Site
    namespace: str
    clients: dict[str, httpx.Client]
    root: httpx.Client
    parts: dict[str, str]


@pytest.fixture(scope="module")
def guards(sites: Sites) -> Iterator[Callable[[str], Guarded]]:
    found: dict[str, Guarded] = {}

    def get(database: str) -> Guarded:
        if database not in found:
            found[database] = _guard(sites(database, auth="token"))
        return found[database]

    yield get
    for each in found.values():
        for client in (*each.clients.values(), each.root):
            client.close()


@pytest.fixture
def guarded(guards: Callable[[str], Guarded], database: str) -> Guarded:
    return guards(database)


def _guard(site: Site) -> Guarded:
    namespace = unique("team")

    token = site.token
    clients = {role: site.connect(token(role, namespace)) for role in ("reader", "writer", "maintainer", "admin")}
    clients["stranger"] = site.connect(token("admin", unique("elsewhere")))
    clients["visitor"] = site.connect(token("reader", unique("elsewhere")))
    clients["anonymous"] = site.connect()
    root = site.connect(token("admin"))
    writer = clients["writer"]
    assert push(writer, namespace, "base", "base", base_files()).status_code == 201
    guarded = Guarded(site, namespace, clients, root, {})
    guarded.parts = _fresh(guarded)
    return guarded


def _fresh(guarded: Guarded) -> dict[str, str]:
    """The parts of URLs: a repository of two versions with the tag `t`."""
    writer, name, ns = guarded.clients["writer"], unique("r"), guarded.namespace
    for seed in (1, 2):
        made = push(writer, ns, name, "adapter", adapter_files(seed), base=f"{ns}/base", accept_base=True)
        assert made.status_code == 201, made.text
    assert writer.put(f"/api/v1/repositories/{ns}/{name}/tags/t", json={"target": "v2"}).status_code == 200
    return {"namespace": ns, "name": name, "selector": "v1", "tag": "t", "job_id": made.json()["job"]}


def _prepare(guarded: Guarded, row: Row, role: str) -> tuple[str, dict[str, Any]]:
    """A URL whose parts all exist, and the body, with what the caller owns where the route needs it."""
    ns, writer, files = guarded.namespace, guarded.clients["writer"], adapter_files(1)
    reaches = row.method != "GET" and row.least in RANK and RANK[role] >= RANK[row.least]
    parts = _fresh(guarded) if reaches and "{name}" in row.path else guarded.parts
    name = parts["name"]
    other = unique("new")
    owner = guarded.clients[role] if RANK[role] >= RANK["writer"] else writer
    session = ""
    if "{upload_id}" in row.path or row.body == "commit":
        session = upload(owner, ns, name if row.body == "commit" else other, "adapter", files).json()["id"]
    token = unique("token")
    if "{token}" in row.path:
        guarded.site.token_with(f"reader:{ns}", name=token)
    digest = describe(files)[0]["digest"]
    made = {"path": "adapter_config.json", "number": 1, "upload_id": session, "digest": digest, "token": token}
    path = row.path.format(**parts, **made, rule="x")
    match row.body:
        case "upload":
            return path, {"json": {"namespace": ns, "name": other, "kind": "adapter", "files": describe(files)}}
        case "blob":
            return path, {"content": files["adapter_config.json"]}
        case "commit":
            body = {"session": session, "kind": "adapter", "files": describe(files), "base": f"{ns}/base"}
            return path, {"json": {**body, "accept_base": True}}
        case "merge":
            return path, {"json": {"adapters": [{"adapter": f"{ns}/{name}:v1"}], "to": f"{ns}/{unique('m')}"}}
        case "compose":
            adapters = [{"adapter": f"{ns}/{name}:v1"}]
            return path, {"json": {"adapters": adapters, "method": "svd", "to": f"{ns}/{unique('m')}"}}
        case "extract":
            return path, {"json": {"tuned": f"{ns}/base", "base": f"{ns}/base", "rank": 1, "to": f"{ns}/{unique('m')}"}}
        case "resize":
            return path, {"json": {"adapter": f"{ns}/{name}:v1", "rank": 1, "to": f"{ns}/{unique('m')}"}}
        case "resize-base":
            return path, {"json": {"base": f"{ns}/base", "vocab": 1000, "to": f"{ns}/{unique('m')}"}}
        case "convert":
            return path, {"json": {"adapter": f"{ns}/{name}:v1", "to": f"{ns}/{unique('m')}"}}
        case "validate":
            return path, {"json": {"version": f"{ns}/{name}:v1"}}
        case "diff":
            return path, {"json": {"before": f"{ns}/{name}:v1", "after": f"{ns}/{name}:v2"}}
        case "sign":
            digest = writer.get(f"/api/v1/repositories/{ns}/{name}/versions/v1").json()["digest"]
            return path, {"json": Signer().of_version(ns, name, digest)}
        case "trust":
            claims, grants = {"sub": unique("x")}, [{"pattern": ns, "role": "admin"}]
            body = {"name": unique("rule"), "kind": "other", "issuer": "https://ci.example", "claims": claims}
            return path, {"json": {**body, "grants": grants}}
        case "policy":
            return path, {"json": {"pattern": f"{ns}/{name}:{unique('never')}", "document": None}}
        case None:
            return path, {}
        case body:
            return path, {"json": body}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path}")
def test_every_route_against_every_caller(guarded: Guarded, row: Row) -> None:
    if row.least == "root":
        path, request = _prepare(guarded, row, "admin")
        assert guarded.root.request(row.method, path, **request).status_code in row.allowed
    for role in ROLES:
        path, request = _prepare(guarded, row, role)
        answer = guarded.clients[role].request(row.method, path, **request)
        what = (role, answer.status_code, answer.text[:300])
        if row.everyone or row.least == "root":
            problem(answer, row.everyone or ("unauthenticated" if role == "anonymous" else "forbidden"))
        elif row.free:
            assert answer.status_code == (401 if role == "anonymous" and row.least != "anonymous" else 200), what
        elif role == "anonymous":
            problem(answer, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
        elif role in OUTSIDERS:
            problem(answer, "not-found")
        elif RANK[role] < RANK[row.least]:
            # A session is its owner's alone: to all others it is not there.
            problem(answer, "not-found" if "{upload_id}" in row.path else row.below)
        else:
            assert answer.status_code in row.allowed, what


@contextmanager
def visible(guarded: Guarded, visibility: Visibility) -> Iterator[None]:
    """The namespace as one that outsiders may read, for a while: others share the service."""
    guarded.site.visibility(guarded.namespace, visibility)
    try:
        yield
    finally:
        guarded.site.visibility(guarded.namespace, "private")


@pytest.mark.parametrize("visibility", ["internal", "public"])
def test_every_route_of_an_open_namespace_against_outsiders(guarded: Guarded, visibility: Visibility) -> None:
    """Whoever is signed in, and for a public namespace everybody, reads what is in repositories, and does no more."""
    wrong = []
    with visible(guarded, visibility):
        for role, row in itertools.product(OUTSIDERS, ROWS):
            if row.everyone or row.least == "root":
                continue
            path, request = _prepare(guarded, row, role)
            answer = guarded.clients[role].request(row.method, path, **request)
            own = "{upload_id}" in row.path or "{job_id}" in row.path
            opened = row.method == "GET" and row.least == "reader" and not row.closed and not own
            if row.least == "anonymous":
                expected = {200}
            elif role == "anonymous":
                expected = row.allowed if opened and visibility == "public" else {401}
            elif row.free or opened:
                expected = row.allowed
            else:
                expected = {404 if own or row.below == "not-found" else 403}
            if answer.status_code not in expected:
                wrong.append((role, row.method, row.path, answer.status_code, answer.text[:200]))
    assert wrong == []


def test_hidden_is_answered_like_absent(guarded: Guarded) -> None:
    """In every word, for every route: an outsider learns nothing from an error."""
    absent, wrong = {"{ns}": unique("absent"), "{name}": unique("gone"), "{job}": "inspect-9-0123456789abcdef"}, []
    there = {"{ns}": guarded.namespace, "{name}": guarded.parts["name"], "{job}": guarded.parts["job_id"]}

    def ask(role: str, row: Row, path: str, request: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
        text = json.dumps([path, request.get("json")])
        for mark, name in there.items():
            text = text.replace(name, names[mark])
        path, body = json.loads(text)
        sent = {**request, "json": body} if "json" in request else request
        answer = guarded.clients[role].request(row.method, path, **sent)
        shown = answer.text
        for mark, name in names.items():
            shown = shown.replace(name, mark)
        return {**json.loads(shown), "request_id": "", "status": answer.status_code}

    for role, row in itertools.product(OUTSIDERS, ROWS):
        if row.free or row.least in ("anonymous", "root") or "{token}" in row.path or row.body == "sign":
            continue
        path, request = _prepare(guarded, row, role)
        if "{upload_id}" in row.path:
            absent["{upload}"], there["{upload}"] = "0" * 32, path.split("/")[4]
        hidden, missing = ask(role, row, path, request, there), ask(role, row, path, request, absent)
        if hidden != missing:
            wrong.append((role, row.method, row.path, hidden, missing))
    assert wrong == []


HUB = {
    "api/models/{repo}": "reader",
    "api/models/{repo}/revision/v1": "reader",
    "api/models/{repo}/tree/v1": "reader",
    "api/models/{repo}/refs": "reader",
    "api/models/{repo}/commits/main": "reader",
    "api/models/{repo}/auth-check": "reader",
    "api/models/{repo}/auth-check/write": "writer",
    "api/models/{repo}.t": "reader",
    "channels/t/api/models/{repo}": "reader",
    "{repo}/resolve/t/adapter_config.json": "reader",
    "{repo}/resolve/v1/adapter_model.safetensors": "reader",
    "paths-info": "reader",
}


@pytest.mark.parametrize("visibility", ["private", "internal", "public"])
def test_every_verb_of_the_hub_dialect_against_every_caller(guarded: Guarded, visibility: Visibility) -> None:
    repo, wrong = f"{guarded.namespace}/{guarded.parts['name']}", []
    reads = {"private": "reader", "internal": "visitor", "public": "anonymous"}[visibility]
    order = ("anonymous", "visitor", "reader", "writer", "maintainer", "admin")

    def ask(role: str, verb: str, repo: str) -> tuple[int, str, str]:
        client = guarded.clients[role]
        if verb == "paths-info":
            answer = client.post(f"/hf/api/models/{repo}/paths-info/v1", json={"paths": ["adapter_config.json"]})
        else:
            answer = client.get(f"/hf/{verb.format(repo=repo)}")
        error = "" if answer.status_code == 200 else answer.json()["error"].replace(repo, "REPO")
        return answer.status_code, answer.headers.get("x-error-code", ""), error

    with visible(guarded, visibility):
        for role, (verb, least) in itertools.product(ROLES, HUB.items()):
            rank = order.index("visitor" if role == "stranger" else role)
            found = ask(role, verb, repo)
            if rank >= order.index(least if least == "writer" else reads):
                good = found[0] == 200
            elif rank >= order.index(reads):
                good = found[0] == (401 if role == "anonymous" else 403)
            else:
                good = found[:2] == (401 if role == "anonymous" else 404, "RepoNotFound")
                good = good and found == ask(role, verb, f"{unique('absent')}/gone")
            if not good:
                wrong.append((role, verb, *found))
        for role in ROLES:
            readable = order.index("visitor" if role == "stranger" else role) >= order.index(reads)
            client = guarded.clients[role]
            listed = client.get("/hf/api/models", params={"author": guarded.namespace, "limit": 1000})
            if role == "anonymous" and not readable:
                assert (listed.status_code, listed.headers["x-error-code"]) == (401, "RepoNotFound")
            else:
                assert ({model["id"] for model in listed.json()} >= {repo}) is readable, role
                assert all(model["private"] is (visibility != "public") for model in listed.json())
            assert client.get("/hf/api/whoami-v2").status_code == (401 if role == "anonymous" else 200)
    assert wrong == []


LFS = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1}]}
HUB_WRITES = [
    ("POST", "api/models/{repo}/preupload/main", {"files": []}, "writer", 200),
    ("POST", "api/models/{repo}/commit/main", {"key": "header", "value": {"summary": "x"}}, "writer", 200),
    ("POST", "api/models/{repo}/tag/v1", {"tag": "t"}, "writer", 409),
    ("DELETE", "api/models/{repo}/tag/nope", None, "writer", 404),
    ("POST", "api/models/{repo}/branch/t", {}, "writer", 409),
    ("DELETE", "api/models/{repo}/branch/nope", None, "writer", 404),
    ("GET", "api/models/{repo}/xet-write-token/main", None, "writer", 422),
    ("POST", "{repo}.git/info/lfs/objects/batch", LFS, "writer", 200),
    ("POST", "{repo}.git/info/lfs/verify", {"oid": "1" * 64, "size": 1}, "writer", 404),
    ("POST", "api/repos/create", "name", "writer", 409),
    ("DELETE", "api/repos/delete", "name", "admin", 409),  # allowed, but for its tag
]


@pytest.mark.parametrize("visibility", ["private", "internal", "public"])
def test_every_write_of_the_hub_dialect_against_every_caller(guarded: Guarded, visibility: Visibility) -> None:
    repo, wrong = f"{guarded.namespace}/{guarded.parts['name']}", []
    order = ("anonymous", "visitor", "reader", "writer", "maintainer", "admin")
    readers = {"private": order.index("reader"), "internal": order.index("visitor"), "public": 0}[visibility]

    def ask(role: str, method: str, path: str, body: Any, repo: str) -> tuple[int, str, str]:
        namespace, _, name = repo.partition("/")
        sent = {"name": name, "organization": namespace} if body == "name" else body
        answer = guarded.clients[role].request(method, f"/hf/{path.format(repo=repo)}", json=sent)
        error = answer.headers.get("x-error-message", "").replace(repo, "REPO").replace(namespace, "SPACE")
        return answer.status_code, answer.headers.get("x-error-code", ""), error

    with visible(guarded, visibility):
        for role, (method, path, body, least, status) in itertools.product(ROLES, HUB_WRITES):
            rank = order.index("visitor" if role == "stranger" else role)
            found = ask(role, method, path, body, repo)
            if rank >= order.index(least):
                good = found[0] == status and found[1] != "RepoNotFound"
            elif role == "anonymous":
                good = found[:2] == (401, "RepoNotFound")
            elif rank >= readers or path == "api/repos/create":
                good = found[0] == 403
            else:
                good = found[:2] == (404, "RepoNotFound")
            if good and rank < order.index("reader") and (rank < readers or role == "anonymous"):
                good = found == ask(role, method, path, body, f"{unique('absent')}/gone")
            if not good:
                wrong.append((role, method, path, *found))
    assert wrong == []


def test_a_staged_repository_is_hidden_like_any_other(guarded: Guarded) -> None:
    repo = f"{guarded.namespace}/{unique('staged')}"
    namespace, _, name = repo.partition("/")
    writer = guarded.clients["writer"]
    assert writer.post("/hf/api/repos/create", json={"name": name, "organization": namespace}).status_code == 200
    for role in ROLES:
        client = guarded.clients[role]
        for path in (f"api/models/{repo}", f"api/models/{repo}/refs", f"api/models/{repo}/auth-check"):
            answer = client.get(f"/hf/{path}")
            if role in OUTSIDERS:
                absent = client.get(f"/hf/{path.replace(repo, f'{namespace}/gone')}")
                assert answer.headers["x-error-code"] == "RepoNotFound"
                assert answer.json()["error"].replace(name, "gone") == absent.json()["error"]
            else:
                assert answer.status_code == 200, (role, path, answer.text)
    assert writer.delete("/hf/api/repos/delete", params={}).status_code == 400
    removed = writer.request("DELETE", "/hf/api/repos/delete", json={"name": name, "organization": namespace})
    assert removed.status_code == 200, removed.text


def test_every_route_of_the_service_has_a_row(tmp_path: Path) -> None:
    ctx = open_context(ServiceSettings(data=tmp_path))
    try:
        app = create_app(ctx)
        found = set()
        for route in app.routes:
            path = "".join(
                part if isinstance(part, str) else "/{" + part.name + "}"
                for part in (("/" + p) if isinstance(p, str) else p for p in getattr(route, "path_components", []))
            )
            for method in getattr(route, "methods", ()):
                if method not in ("HEAD", "OPTIONS") and not path.startswith(("/schema", "/hf", "/v2")):
                    found.add((method, path.rstrip("/")))
    finally:
        ctx.jobs.close()
        ctx.db.engine.dispose()
    rows = {(row.method, row.path) for row in ROWS}
    assert found - rows == set(), "routes without a row in the matrix"
    assert rows - found == set(), "rows without a route"


def test_lists_hold_what_the_caller_may_read_and_nothing_else(guarded: Guarded) -> None:
    ns = guarded.namespace
    other = unique("other")
    assert push(guarded.root, other, "base", "base", base_files()).status_code == 201
    reader, stranger = guarded.clients["reader"], guarded.clients["stranger"]
    names = [(item["namespace"], item["name"]) for item in reader.get("/api/v1/repositories").json()["items"]]
    assert (ns, "base") in names
    assert {namespace for namespace, _ in names} == {ns}
    assert reader.get("/api/v1/repositories", params={"namespace": other}).json()["items"] == []
    assert {event["subject"].partition("/")[0] for event in reader.get("/api/v1/events").json()["items"]} == {ns}
    assert {
        job["title"].split()[1].partition("/")[0]
        for job in reader.get("/api/v1/jobs", params={"kind": "inspect"}).json()["items"]
    } == {ns}
    home = stranger.get("/api/v1/whoami").json()["namespace"]
    for path in ("repositories", "events", "jobs"):
        assert ns not in stranger.get(f"/api/v1/{path}").text
    assert {item["namespace"] for item in stranger.get("/api/v1/repositories").json()["items"]} <= {home}
    assert {other, ns} <= {
        item["namespace"] for item in guarded.root.get("/api/v1/repositories", params={"limit": 1000}).json()["items"]
    }


def test_a_blob_of_another_namespace_is_demanded_again(guarded: Guarded) -> None:
    """An answer `present` would tell a stranger that somebody has this file; so would a commit without the bytes."""
    files = adapter_files(77, lora_dropout=0.125)
    writer, ns = guarded.clients["writer"], guarded.namespace
    assert push(writer, ns, "secret", "adapter", files, base=f"{ns}/base", accept_base=True).status_code == 201
    stranger = guarded.clients["stranger"]
    home = stranger.get("/api/v1/whoami").json()["namespace"]
    push(stranger, home, "base", "base", base_files())
    announced = {"namespace": home, "name": "copy", "kind": "adapter", "files": describe(files)}
    session = stranger.post("/api/v1/uploads", json=announced).json()
    assert {blob["state"] for blob in session["blobs"]} == {"needed"}
    body = {"kind": "adapter", "files": describe(files), "base": f"{home}/base", "accept_base": True}
    path = f"/api/v1/repositories/{home}/copy/versions"
    problem(stranger.post(path, json={**body, "session": session["id"]}), "rejected")
    problem(stranger.post(path, json={**body, "session": "0" * 32}), "not-found")
    problem(stranger.post(path, json={**body, "session": session["id"], "base": f"{ns}/base"}), "rejected")
    assert push(stranger, home, "copy", "adapter", files, base=f"{home}/base", accept_base=True).status_code == 201
    problem(
        push(stranger, home, "spy", "adapter", files, base=f"{home}/base", accept_base=True, parents=[f"{ns}/secret"]),
        "not-found",
    )
    merge = {"adapters": [{"adapter": f"{ns}/secret"}], "to": f"{home}/merged"}
    problem(stranger.post("/api/v1/merges", json=merge), "not-found")


def test_a_session_is_its_owners(guarded: Guarded) -> None:
    files, ns = adapter_files(3), guarded.namespace
    session = upload(guarded.clients["writer"], ns, unique("mine"), "adapter", files).json()["id"]
    problem(guarded.clients["admin"].get(f"/api/v1/uploads/{session}"), "not-found")


def test_tokens(guarded: Guarded) -> None:
    site = guarded.site
    for header in ("Bearer", "Basic abc", "Bearer hf_wrong", "Bearer " + "x" * 5000, "Bearer \xff\xfe"):
        answer = site.client.get("/api/v1/whoami", headers={"Authorization": header.encode("latin-1")})
        problem(answer, "unauthenticated")
    me = guarded.clients["reader"].get("/api/v1/whoami").json()
    assert (me["role"], me["namespace"], me["anonymous"]) == ("reader", guarded.namespace, False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_it_does_not_listen_beyond_loopback_without_authentication(tmp_path: Path, host: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lora_registry.cli", "serve", "--host", host, "--port", "0"],
        env=service.environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "with no authentication" in done.stderr
    assert "LORA_REG_AUTH=token" in done.stderr
    assert not list(tmp_path.iterdir())
