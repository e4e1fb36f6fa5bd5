"""CI jobs and service accounts let in by their identity tokens, against an issuer on this machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import sqlalchemy as sa

from lora_contract.errors import RegistryError
from lora_contract.wire.identity import TrustRequest
from lora_registry import admin, admin_trust, settings
from lora_registry.oidc.refusal import ACCEPTED_BY_NONE
from tests.registry.conftest import Sites
from tests.registry.hub import clients
from tests.registry.site import Site, base_files, problem, unique
from tests.support import service
from tests.support.issuer import AUDIENCE, Issuer, Key, github, issuer, kubernetes
from tests.support.push import push
from tests.support.tls import tls_front

EXCHANGE = "/api/v1/token-exchange"
IDS = {"repository_id": "74", "repository_owner_id": "65"}
ACCOUNT = {"kubernetes.io/namespace": "serving", "kubernetes.io/serviceaccount/name": "vllm"}


@pytest.fixture(scope="module")
def made() -> Iterator[Issuer]:
    with issuer() as running:
        yield running


class Registry:
    """A service that asks for tokens, with a namespace of the test's own."""

    def __init__(self, site: Site, made: Issuer) -> None:
        self.site, self.issuer, self.namespace = site, made, unique("team")
        self.config = settings.load(service.environment(site.data, site.extra))

    def trust(self, claims: dict[str, str], role: str = "writer", **more: Any) -> str:
        """Add a rule of `lora-registry trust add`; returns its name."""
        fields = {
            "name": unique("rule"),
            "kind": "github",
            "issuer": self.issuer.url,
            "claims": claims,
            "grants": [{"pattern": self.namespace, "role": role}],
            **more,
        }
        return admin_trust.add(self.config, msgspec.convert(fields, TrustRequest)).name

    def exchange(self, claims: dict[str, Any], **options: Any) -> httpx.Response:
        return self.send(self.issuer.token(claims, **options))

    def send(self, token: str) -> httpx.Response:
        return self.site.client.post(EXCHANGE, json={"token": token})

    def get(self, path: str, token: str) -> httpx.Response:
        return self.site.client.get(path, headers={"Authorization": f"Bearer {token}"})

    def events(self, kind: str) -> list[dict[str, Any]]:
        engine = sa.create_engine(self.site.database)
        with engine.connect() as connection:
            rows = connection.execute(
                sa.text("SELECT actor, subject, facts FROM event WHERE kind = :kind AND namespace = :ns ORDER BY id"),
                {"kind": kind, "ns": self.namespace},
            ).all()
        engine.dispose()
        return [{"actor": actor, "subject": subject, **json.loads(facts)} for actor, subject, facts in rows]


@pytest.fixture
def registry(sites: Sites, database: str, made: Issuer) -> Iterator[Registry]:
    found = Registry(sites(database, auth="token"), made)
    yield found
    for view in admin_trust.list_all(found.config):
        admin_trust.remove(found.config, view.name)


def refused(answer: httpx.Response, detail: str = ACCEPTED_BY_NONE) -> None:
    body = problem(answer, "unauthenticated")
    assert body["detail"] == detail
    assert answer.headers["cache-control"] == "no-store"


def test_a_workflow_gets_a_token_of_minutes(registry: Registry) -> None:
    name = registry.trust(IDS)
    assert registry.site.client.get(f"{EXCHANGE}/audience").json() == {"audience": AUDIENCE}
    options = registry.site.client.get("/api/v1/login-options").json()
    assert (options["auth"], options["issuer"], options["audience"]) == ("token", None, AUDIENCE)
    answer = registry.exchange(github())
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    issued = answer.json()
    assert issued["name"] == f"main@fa1e0c2b7d9b#{name}"
    assert issued["grants"] == [{"pattern": registry.namespace, "role": "writer"}]
    me = registry.get("/api/v1/whoami", issued["token"]).json()
    assert (me["name"], me["role"], me["namespace"]) == (issued["name"], "writer", registry.namespace)
    again = registry.exchange(github()).json()
    assert again["name"] == issued["name"]
    assert registry.get("/api/v1/whoami", again["token"]).status_code == 200
    assert registry.get("/api/v1/whoami", issued["token"]).status_code == 200
    (added,) = registry.events("trust-added")
    assert (added["subject"], added["claims"], added["actor"]) == (name, IDS, "operator")
    first, _ = registry.events("token-issued")
    assert (first["actor"], first["subject"], first["rules"]) == (issued["name"], issued["name"], [name])
    assert first["claims"]["repository"] == "acme/sql-writer"
    assert first["claims"]["sha"] == github()["sha"]
    assert issued["token"] not in json.dumps(first)


def test_an_issued_token_ends(registry: Registry) -> None:
    registry.trust(IDS, seconds=60)
    issued = registry.exchange(github()).json()
    engine = sa.create_engine(registry.site.database)
    with engine.begin() as connection:
        (life,) = connection.execute(
            sa.text(
                "SELECT max(s.expires_at - s.created_at) FROM token_secret s JOIN token t ON t.id = s.token_id WHERE t.name = :name"
            ),
            {"name": issued["name"]},
        ).one()
        assert life == 60_000_000
        connection.execute(
            sa.text(
                "UPDATE token_secret SET expires_at = 1 WHERE token_id = (SELECT id FROM token WHERE name = :name)"
            ),
            {"name": issued["name"]},
        )
    engine.dispose()
    problem(registry.get("/api/v1/whoami", issued["token"]), "unauthenticated")
    assert registry.exchange(github()).status_code == 201  # and expired secrets are forgotten


def at_once(registry: Registry, tokens: list[str]) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(tokens)) as pool:
        return list(pool.map(registry.send, tokens))


def test_jobs_of_one_commit_sign_in_at_once(registry: Registry) -> None:
    registry.trust(IDS)
    answers = at_once(registry, [registry.issuer.token(github()) for _ in range(6)])
    assert [answer.status_code for answer in answers] == [201] * 6
    assert len({answer.json()["name"] for answer in answers}) == 1
    for answer in answers:
        assert registry.get("/api/v1/whoami", answer.json()["token"]).status_code == 200


def test_an_identity_token_is_taken_once(registry: Registry) -> None:
    registry.trust(IDS)
    token = registry.issuer.token(github())
    answers = at_once(registry, [token] * 6)
    assert sorted(answer.status_code for answer in answers) == [201, *[401] * 5]
    refused(registry.send(token), "The identity token was exchanged before.")
    same_id = github(jti="run-1")
    assert registry.exchange(same_id).status_code == 201
    refused(registry.exchange({**same_id, "exp": int(time.time()) + 200}), "The identity token was exchanged before.")
    assert registry.exchange(github(jti=None)).status_code == 201
    assert len(registry.events("token-issued")) == 3


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "another"},
        {"aud": [AUDIENCE, "another"]},
        {"repository_id": "75"},
        {"repository_owner_id": "66"},
        {"repository_id": None},
        {"ref": "refs/heads/topic"},
        {"event_name": "pull_request"},
        {"iss": "https://token.actions.githubusercontent.com"},
    ],
)
def test_claims_that_no_rule_accepts(registry: Registry, claims: dict[str, Any]) -> None:
    name = registry.trust({**IDS, "ref": "refs/heads/main"})
    answer = registry.exchange(github(**claims))
    refused(answer)
    for hidden in (name, registry.namespace, registry.issuer.url, "refs/heads/main", "rule-"):
        assert hidden not in answer.text
    assert registry.events("token-issued") == []


def test_what_is_refused_reads_the_same_whether_the_issuer_is_trusted_or_not(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log has the reason, but no token."""
    registry.trust(IDS)
    with issuer() as stranger:
        answers = [
            registry.exchange(github(repository_id="1")),
            registry.exchange(github(), key=Key("unknown")),
            registry.exchange(github(), key=Key("first")),
            registry.send(stranger.token(github())),
        ]
        assert stranger.requests == []
    assert len({json.dumps({**answer.json(), "request_id": ""}) for answer in answers}) == 1
    for reason in ("matches its claims", "the id 'unknown'", "Signature verification failed", stranger.url):
        assert reason in caplog.text
    assert "eyJ" not in caplog.text
    now = int(time.time())
    refused(registry.exchange(github(exp=now - 100)), "The identity token has expired.")
    refused(registry.exchange(github(nbf=now + 100)), "The identity token is not yet valid.")
    refused(registry.send("hf_abc"), "The identity token is not a JSON Web Token.")


def test_bodies_of_strangers_are_small(registry: Registry) -> None:
    client = registry.site.client
    problem(client.post(EXCHANGE, json={"token": "x" * 40_000}), "too-large")
    chunks = iter([b'{"token": "', *[b"x" * 1000] * 100, b'"}'])
    problem(client.post(EXCHANGE, content=chunks, headers={"Content-Type": "application/json"}), "too-large")
    problem(client.post(EXCHANGE, json={"token": "x" * 20_000}), "invalid-request")
    problem(client.post(EXCHANGE, json={"token": ""}), "invalid-request")
    problem(client.post(EXCHANGE, json={"token": "a.b.c", "more": 1}), "invalid-request")
    problem(client.post(EXCHANGE, content=b"token=x"), "unsupported-media-type")


def test_a_rule_that_was_removed_lets_nobody_in(registry: Registry) -> None:
    name = registry.trust(IDS)
    issued = registry.exchange(github()).json()
    admin_trust.remove(registry.config, name)
    problem(registry.get("/api/v1/whoami", issued["token"]), "unauthenticated")
    refused(registry.exchange(github()))
    with pytest.raises(RegistryError, match="no trust rule"):
        admin_trust.remove(registry.config, name)
    assert [event["subject"] for event in registry.events("trust-removed")] == [name]


def test_a_revoked_token_is_dead_and_a_new_one_is_issued(registry: Registry) -> None:
    registry.trust(IDS)
    issued = registry.exchange(github()).json()
    admin.revoke_token(registry.config, issued["name"])
    problem(registry.get("/api/v1/whoami", issued["token"]), "unauthenticated")
    fresh = registry.exchange(github()).json()
    assert registry.get("/api/v1/whoami", fresh["token"]).status_code == 200
    problem(registry.get("/api/v1/whoami", issued["token"]), "unauthenticated")


def test_a_secret_that_was_rotated_by_hand_ends_with_the_next_exchange(registry: Registry) -> None:
    registry.trust(IDS)
    issued = registry.exchange(github()).json()
    rotated = admin.rotate_token(registry.config, issued["name"], overlap=0, lifetime=None)
    assert registry.get("/api/v1/whoami", rotated).status_code == 200
    assert registry.exchange(github()).status_code == 201
    problem(registry.get("/api/v1/whoami", rotated), "unauthenticated")


def test_tokens_that_expired_long_ago_are_forgotten(registry: Registry) -> None:
    registry.trust(IDS)
    old = registry.exchange(github()).json()["name"]
    by_hand = unique("by-hand")
    registry.site.token_with(f"reader:{registry.namespace}", name=by_hand)
    engine = sa.create_engine(registry.site.database)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE token SET expires_at = 1 WHERE name in (:a, :b)"), {"a": old, "b": by_hand})
        connection.execute(sa.text("UPDATE taken_token SET expires_at = 1"))
    registry.exchange(github(ref="refs/heads/topic"))
    with engine.connect() as connection:
        names = set(connection.execute(sa.text("SELECT name FROM token")).scalars())
        taken = connection.execute(sa.text("SELECT count(*) FROM taken_token")).scalar()
    engine.dispose()
    assert (old in names, by_hand in names, taken) == (False, True, 1)
    assert registry.exchange(github()).json()["name"] == old


@pytest.mark.parametrize("stored", [True, False], ids=["stored-keys", "keys-by-url"])
def test_a_cluster_that_only_its_own_network_knows(registry: Registry, tmp_path: Path, stored: bool) -> None:
    """Its issuer resolves nowhere else: its keys are stored, or fetched where an administrator said, by its own CA."""
    cluster = f"https://kubernetes.{unique('c')}.svc.cluster.local"
    with tls_front(target_port=int(registry.issuer.url.rpartition(":")[2]), folder=tmp_path) as front:
        keys: dict[str, str] = {"jwks": registry.issuer.documents["/jwks"].decode()}
        if not stored:
            keys = {"jwks_url": f"https://127.0.0.1:{front.port}/jwks", "ca": front.certificate.read_text()}
        name = registry.trust(ACCOUNT, "reader", kind="kubernetes", issuer=cluster, keys=keys)
        me = registry.get("/api/v1/whoami", registry.issuer.token(kubernetes(iss=cluster)))
    assert me.json()["name"] == f"serving/vllm#{name}"
    assert [event["actor"] for event in registry.events("trust-added")] == ["operator"]


def test_an_inference_server_pulls_with_the_token_of_its_pod(registry: Registry, tmp_path: Path) -> None:
    """By the stock client, which reads the file for each request."""
    registry.trust(ACCOUNT, "reader", kind="kubernetes")
    root = registry.site.connect(registry.site.token("admin"))
    assert push(root, registry.namespace, "base", "base", base_files()).status_code == 201
    root.close()
    file = tmp_path / "token"
    asked = {"wanted": [{"repo_id": f"{registry.namespace}/base"}]}

    def fetch(claims: dict[str, Any], home: str) -> dict[str, Any]:
        file.write_text(registry.issuer.token(claims))
        endpoint = f"{registry.site.url}/hf"
        answers = clients.run(
            sys.executable, "hub_fetch.py", asked, endpoint=endpoint, home=tmp_path / home, token_file=file
        )
        return dict(answers[0])

    assert fetch(kubernetes(), "own")["files"].keys() == base_files().keys()
    assert "error" in fetch(kubernetes("other"), "other")


def test_the_rights_are_those_of_the_rules_now(registry: Registry) -> None:
    name = registry.trust(IDS, "writer")
    issued = registry.exchange(github()).json()
    registry.trust({**IDS, "ref": "refs/heads/main"}, "reader", name=unique("main"))
    lesser = registry.exchange(github()).json()
    assert lesser["name"] != issued["name"]
    assert lesser["grants"][0]["role"] == "reader"
    assert name in issued["name"]


def test_a_service_account_needs_no_exchange(registry: Registry) -> None:
    name = registry.trust(ACCOUNT, "reader", kind="kubernetes")
    token = registry.issuer.token(kubernetes())
    for _ in range(2):
        me = registry.get("/api/v1/whoami", token).json()
        assert (me["name"], me["role"]) == (f"serving/vllm#{name}", "reader")
    assert registry.get("/hf/api/whoami-v2", token).status_code == 200
    assert registry.get("/hf/api/models", token).status_code == 200
    first, second = registry.send(token), registry.send(token)  # not taken once: a pod has one for an hour
    assert (first.status_code, second.status_code) == (201, 201)
    assert registry.get("/api/v1/whoami", first.json()["token"]).json()["name"] == f"serving/vllm#{name}"
    for claims in (kubernetes("other"), kubernetes(account="other"), kubernetes(aud=["https://kubernetes.default"])):
        problem(registry.get("/api/v1/whoami", registry.issuer.token(claims)), "unauthenticated")
    problem(
        registry.get("/api/v1/whoami", registry.issuer.token(kubernetes(exp=int(time.time()) - 60))), "unauthenticated"
    )
    problem(registry.get("/api/v1/whoami", token[:-4] + "AAAA"), "unauthenticated")


def test_a_token_of_ci_is_no_bearer_token(registry: Registry) -> None:
    registry.trust(IDS)
    problem(registry.get("/api/v1/whoami", registry.issuer.token(github())), "unauthenticated")


def test_a_verdict_lasts_a_minute_at_most(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.site.thread is not None
    verdicts = registry.site.thread.context.verdicts
    name = registry.trust(ACCOUNT, "reader", kind="kubernetes")
    token = registry.issuer.token(kubernetes())
    assert registry.get("/api/v1/whoami", token).status_code == 200
    admin_trust.remove(registry.config, name)
    later = time.time() + 61
    monkeypatch.setattr(verdicts, "_clock", lambda: later)
    problem(registry.get("/api/v1/whoami", token), "unauthenticated")


def test_a_name_of_a_token_that_was_made_by_hand_is_not_taken_over(registry: Registry) -> None:
    """Such a name holds no `#`, unless it was given before the registry issued tokens itself."""
    name = registry.trust(IDS)
    engine = sa.create_engine(registry.site.database)
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO token (name, note, created_by, created_at) VALUES (:name, '', 'x', 1)"),
            {"name": f"main@fa1e0c2b7d9b#{name}"},
        )
    engine.dispose()
    refused(registry.exchange(github()))


def test_rules_by_the_api_are_for_administrators_of_everything(registry: Registry, made: Issuer) -> None:
    body = {
        "name": unique("api"),
        "kind": "other",
        "issuer": made.url,
        "claims": {"sub": "robot"},
        "grants": [{"pattern": registry.namespace, "role": "admin"}],
    }
    site, path = registry.site, "/api/v1/trust-rules"
    root = site.connect(site.token("admin"))
    local = site.connect(site.token("admin", registry.namespace))
    problem(site.client.post(path, json=body), "unauthenticated")
    for request in (local.post(path, json=body), local.get(path), local.delete(f"{path}/x")):
        assert request.status_code in (403, 404)
    view = root.post(path, json=body)
    assert view.status_code == 201, view.text
    assert root.get(path).json()["items"] == [view.json()]
    problem(root.post(path, json=body), "exists")
    problem(root.post(path, json={**body, "name": "another"}), "exists")
    assert registry.exchange({"sub": "robot"}).json()["grants"] == body["grants"]
    assert root.delete(f"{path}/{body['name']}").status_code == 204
    problem(root.delete(f"{path}/{body['name']}"), "not-found")
    for wrong in (
        {"claims": {"email": "a@b"}},
        {"issuer": "http://issuer.example"},
        {"name": "No Name"},
        {"grants": [{"pattern": "UPPER_", "role": "admin"}]},
        {"grants": []},
        {"keys": {"jwks": "{}"}},
        {"keys": {"ca": "x"}},
        {"keys": {"jwks_url": "http://keys.example"}},
        {"seconds": 10},
        {"kind": "person"},
    ):
        answer = root.post(path, json={**body, "name": unique("wrong"), **wrong})
        assert answer.status_code == 400, answer.text
    for client in (root, local):
        client.close()
