"""Tokens: what they may, how long, who changes them, and what is recorded of that."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from lora_contract.errors import RegistryError
from lora_contract.roles import Grant, parse_grant
from lora_registry import admin
from lora_registry.auth import last_use
from tests.registry.conftest import Sites
from tests.registry.site import Site, problem, unique
from tests.support.push import push

TEXTS = {"data.jsonl": b'{"text": "a"}\n'}


@pytest.fixture
def site(sites: Sites, database: str) -> Site:
    return sites(database, auth="token")


def whoami(site: Site, secret: str) -> int:
    return httpx.get(f"{site.url}/api/v1/whoami", headers={"authorization": f"Bearer {secret}"}).status_code


def test_several_grants_and_patterns(site: Site) -> None:
    stem, own = unique("acme"), unique("own")
    with (
        site.connect(site.token("admin")) as root,
        site.connect(site.token_with(f"reader:{stem}-*", f"writer:{own}")) as some,
    ):
        for namespace in (stem, f"{stem}-a", f"{stem}-b", own, f"{own}-a"):
            assert push(root, namespace, "texts", "dataset", TEXTS).status_code == 201
        listed = some.get("/api/v1/repositories").json()["items"]
        assert {item["namespace"] for item in listed} == {f"{stem}-a", f"{stem}-b", own}
        roles = {item["name"]: item["role"] for item in some.get("/api/v1/namespaces").json()["items"]}
        assert roles == {f"{stem}-a": "reader", f"{stem}-b": "reader", own: "writer"}
        events = {event["subject"].partition("/")[0] for event in some.get("/api/v1/events").json()["items"]}
        assert events == {f"{stem}-a", f"{stem}-b", own}
        assert push(some, own, "more", "dataset", TEXTS).status_code == 201
        problem(push(some, f"{stem}-a", "more", "dataset", TEXTS), "forbidden")
        problem(push(some, stem, "more", "dataset", TEXTS), "not-found")
        me = some.get("/api/v1/whoami").json()
        assert (me["role"], me["namespace"]) == ("writer", None)
        assert {(grant["role"], grant["pattern"]) for grant in me["grants"]} == {
            ("reader", f"{stem}-*"), ("writer", own)
        }  # fmt: skip
        # The underscore of a name is no wildcard of SQL, and a policy of a pattern needs a grant that spans it.
        assert push(root, "under_score", "texts", "dataset", TEXTS).status_code in (200, 201)
        with site.connect(site.token_with("reader:under.score", f"maintainer:{stem}-*")) as dotted:
            assert {item["namespace"] for item in dotted.get("/api/v1/repositories").json()["items"]} == {
                f"{stem}-a", f"{stem}-b"
            }  # fmt: skip
            policy = {"document": {"name": "p"}}
            wide = {**policy, "pattern": f"{stem}-*/x:prod"}
            assert dotted.put("/api/v1/policies", json=wide).status_code == 200
            problem(dotted.put("/api/v1/policies", json={**policy, "pattern": f"{stem}*/x:prod"}), "not-found")


def test_a_secret_stops_when_it_is_revoked_rotated_or_expired(site: Site) -> None:
    config, name = site.config(), unique("ci")
    grants = [parse_grant("reader:acme")]
    first = admin.create_token(config, name=name, grants=grants, note="CI of acme")
    assert whoami(site, first) == 200
    second = admin.rotate_token(config, name, overlap=0, lifetime=None)
    assert (whoami(site, first), whoami(site, second)) == (401, 200)
    third = admin.rotate_token(config, name, overlap=600, lifetime=None)
    assert (whoami(site, second), whoami(site, third)) == (200, 200)
    fourth = admin.rotate_token(config, name, overlap=1, lifetime=600)
    time.sleep(1.1)
    assert [whoami(site, secret) for secret in (first, second, third, fourth)] == [401, 401, 401, 200]
    admin.revoke_token(config, name)
    assert whoami(site, fourth) == 401
    with pytest.raises(RegistryError, match="was revoked"):
        admin.rotate_token(config, name, overlap=0, lifetime=None)
    with pytest.raises(RegistryError, match="was revoked; names are not reused"):
        admin.create_token(config, name=name, grants=grants)
    (view,) = [view for view in admin.list_tokens(config) if view.name == name]
    assert (view.note, view.grants, view.created_by) == ("CI of acme", [Grant("acme", "reader")], "operator")
    assert None not in (view.revoked_at, view.expires_at)
    brief = unique("brief")
    secret = admin.create_token(config, name=brief, grants=grants, lifetime=1)
    assert whoami(site, secret) == 200
    time.sleep(1.1)
    assert whoami(site, secret) == 401
    with pytest.raises(RegistryError, match="has expired"):
        admin.rotate_token(config, brief, overlap=0, lifetime=None)
    assert whoami(site, admin.rotate_token(config, brief, overlap=0, lifetime=600)) == 200


@pytest.mark.parametrize(
    ("name", "grants", "said"),
    [
        ("", ["reader:a"], "1 to 128"),
        ("a\nb", ["reader:a"], "printable"),
        ("local", ["reader:a"], "choose another name"),
        ("x", [], "1 to 64 grants"),
        ("x", ["reader:a", "writer:a"], "same pattern"),
    ],
)
def test_tokens_that_are_not_created(site: Site, name: str, grants: list[str], said: str) -> None:
    with pytest.raises(RegistryError, match=said):
        admin.create_token(site.config(), name=name, grants=[parse_grant(text) for text in grants])


@pytest.mark.parametrize("text", ["reader", "owner:a", "reader:A_", "reader:a b", "reader:", "reader:" + "a*" * 60])
def test_grants_that_are_none(text: str) -> None:
    with pytest.raises(RegistryError):
        parse_grant(text)


def test_administrators_see_and_revoke_what_is_theirs(site: Site) -> None:
    acme, beta = unique("acme"), unique("beta")
    admins = {name: site.connect(site.token("admin", name)) for name in (acme, beta)}
    maintainer = site.connect(site.token("maintainer", acme))
    only, both, wide = unique("only"), unique("both/slash"), unique("wide")
    secrets = {
        only: site.token_with(f"writer:{acme}", name=only),
        both: site.token_with(f"writer:{acme}", f"reader:{beta}", name=both),
        wide: site.token_with("reader:*", name=wide),
    }

    def names(client: httpx.Client) -> dict[str, list[str]]:
        items = client.get("/api/v1/tokens", params={"limit": 1000}).json()["items"]
        return {item["name"]: [grant["pattern"] for grant in item["grants"]] for item in items}

    assert names(maintainer) == {}
    assert {only, both} <= names(admins[acme]).keys()
    assert wide not in names(admins[acme]), "a pattern beyond what one administers"
    assert names(admins[beta])[both] == [beta]
    shown = next(i for i in admins[beta].get("/api/v1/tokens").json()["items"] if i["name"] == both)
    assert shown["elsewhere"] is True
    assert acme not in json.dumps(shown)
    for client in (maintainer, admins[beta]):
        problem(client.delete(f"/api/v1/tokens/{only}"), "not-found")
    problem(admins[acme].delete(f"/api/v1/tokens/{wide}"), "not-found")
    problem(admins[acme].delete(f"/api/v1/tokens/{unique('none')}"), "not-found")
    assert admins[acme].delete(f"/api/v1/tokens/{both}").status_code == 204
    with site.connect(secrets[both]) as left:
        assert [grant["pattern"] for grant in left.get("/api/v1/whoami").json()["grants"]] == [beta]
    assert admins[beta].delete(f"/api/v1/tokens/{both}").status_code == 204
    assert admins[acme].delete(f"/api/v1/tokens/{only}").status_code == 204
    assert [whoami(site, secrets[name]) for name in (both, only)] == [401, 401]
    for client in (*admins.values(), maintainer):
        client.close()


def test_every_change_of_rights_is_an_event_for_administrators(site: Site) -> None:
    acme, beta, name = unique("acme"), unique("beta"), unique("ci")
    config = site.config()
    admin.create_token(config, name=name, grants=[Grant(acme, "writer"), Grant(beta, "reader")])
    admin.rotate_token(config, name, overlap=60, lifetime=None)
    with site.connect(site.token("admin", acme)) as boss, site.connect(site.token("maintainer", acme)) as other:
        assert boss.put(f"/api/v1/namespaces/{acme}", json={"visibility": "internal"}).status_code == 200
        assert boss.put(f"/api/v1/namespaces/{acme}", json={"visibility": "internal"}).status_code == 200, "no change"
        assert boss.put(f"/api/v1/namespaces/{acme}", json={"visibility": "private"}).status_code == 200
        assert boss.delete(f"/api/v1/tokens/{name}").status_code == 204
        admin.revoke_token(config, name)
        events = boss.get("/api/v1/events").json()["items"]
        assert [event["kind"] for event in events if event["subject"] in (name, acme)] == [
            "token-created", "token-rotated", "visibility-set", "visibility-set", "grants-removed"
        ]  # fmt: skip
        assert beta not in json.dumps(events)
        assert {event["facts"].get("grant") for event in events if event["subject"] == name} == {f"writer:{acme}"}
        seen = {event["kind"] for event in other.get("/api/v1/events").json()["items"]}
        assert not seen & {"token-created", "token-rotated", "visibility-set", "grants-removed", "token-revoked"}
    with site.connect(site.token("admin", beta)) as boss:
        kinds = [event["kind"] for event in boss.get("/api/v1/events").json()["items"] if event["subject"] == name]
        assert kinds == ["token-created", "token-rotated", "token-revoked"]


def test_the_last_use_is_recorded_once_a_minute_and_never_in_the_way(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = unique("used")
    secret = site.token_with("reader:acme", name=name)

    def used() -> str | None:
        return next(view.last_used_at for view in admin.list_tokens(site.config()) if view.name == name)

    assert used() is None
    assert whoami(site, secret) == 200
    deadline = time.monotonic() + 30
    while (first := used()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert whoami(site, secret) == 200
    assert used() == first
    monkeypatch.setattr(last_use, "EVERY", 0)
    monkeypatch.setattr(last_use.LastUse, "_write", _fails)
    assert whoami(site, secret) == 200


def _fails(*_: object) -> None:
    raise RegistryError("unavailable", "The database is read-only.")


def test_the_database_keeps_no_secret(site: Site) -> None:
    secret = site.token_with("reader:acme")
    engine = sa.create_engine(site.database)
    with engine.connect() as connection:
        rows = [connection.execute(sa.text(f"select * from {table}")).all() for table in ("token", "token_secret")]
    engine.dispose()
    assert secret not in str(rows)


def test_the_commands(site: Site, tmp_path: Path) -> None:
    name, out = unique("ci"), tmp_path / "ci.token"
    said = site.run("token", "create", name, "--grant", "writer:acme", "--grant", "reader:acme-*", "--expires", "30d",
                    "--note", "CI", "--out", str(out))  # fmt: skip
    assert said == "", "with --out the secret is in the file alone"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert whoami(site, out.read_text().strip()) == 200
    (listed,) = [item for item in json.loads(site.run("token", "list", "--json"))["items"] if item["name"] == name]
    assert listed["note"] == "CI"
    assert [grant["role"] for grant in listed["grants"]] == ["writer", "reader"]
    assert out.read_text().strip() not in site.run("token", "list")
    renewed = site.run("token", "rotate", name, "--overlap", "1h")
    assert (whoami(site, renewed), whoami(site, out.read_text().strip())) == (200, 200)
    with pytest.raises(AssertionError, match="File exists"):
        site.run("token", "rotate", name, "--out", str(out))
    assert whoami(site, renewed) == 200, "a secret that cannot be written is not made"
    assert site.run("token", "revoke", name) == ""
    assert whoami(site, renewed) == 401
    one = ("--grant", "reader:acme")
    for wrong in ((*one, "--expires", "soon"), (), ("--namespace", "acme"), ("--grant", "boss:acme")):
        with pytest.raises(AssertionError, match="hint: "):
            site.run("token", "create", unique("no"), *wrong)
    assert len(site.run("token", "create", unique("old"), "--role", "reader", "--namespace", "acme")) == 43
    home = unique("home")
    assert site.run("namespace", "set", home, "--visibility", "internal") == ""
    with site.connect(site.token("reader", "x")) as client:
        assert client.get(f"/api/v1/namespaces/{home}").json()["visibility"] == "internal"
    site.visibility(home, "private")


@pytest.mark.parametrize("name", ["api", "hf", "v2", "schema", "healthz", "readyz", "metrics", "static", "assets"])
def test_names_of_routes_are_no_namespaces(site: Site, name: str) -> None:
    with site.connect(site.token("admin")) as root:
        problem(push(root, name, "texts", "dataset", TEXTS), "invalid-reference")
        problem(root.put(f"/api/v1/namespaces/{name}", json={"visibility": "public"}), "invalid-reference")
        merge = {"adapters": [{"adapter": "a/b"}], "to": f"{name}/merged"}
        problem(root.post("/api/v1/merges", json=merge), "invalid-reference")


def test_grants_change_within_what_the_caller_administers(site: Site) -> None:
    acme, beta, name = unique("acme"), unique("beta"), unique("ci")
    secret = site.token_with(f"writer:{acme}", f"reader:{beta}", name=name)
    root, boss = site.connect(site.token("admin")), site.connect(site.token("admin", acme))
    other = site.connect(site.token("writer", acme))

    def change(client: httpx.Client, **body: object) -> httpx.Response:
        return client.put(f"/api/v1/tokens/{name}", json=body)

    def held() -> set[str]:
        me = httpx.get(f"{site.url}/api/v1/whoami", headers={"authorization": f"Bearer {secret}"}).json()
        return {f"{grant['role']}:{grant['pattern']}" for grant in me["grants"]}

    def grant(role: str, pattern: str) -> dict[str, str]:
        return {"role": role, "pattern": pattern}

    with root, boss, other:
        problem(change(other, add=[grant("writer", acme)]), "not-found")
        for pattern in (beta, "*", f"{acme}*"):
            problem(change(boss, add=[grant("reader", pattern)]), "forbidden")
        problem(change(boss, remove=[beta]), "not-found")
        problem(change(boss, add=[grant("writer", acme)], remove=[acme]), "usage")
        problem(change(boss, add=[grant("writer", acme)], replace=[]), "usage")
        problem(change(boss, add=[grant("owner", acme)]), "invalid-request")
        assert held() == {f"writer:{acme}", f"reader:{beta}"}
        view = change(boss, add=[grant("maintainer", acme)]).json()
        assert (view["grants"], view["elsewhere"]) == ([grant("maintainer", acme)], True)
        assert change(boss, add=[grant("maintainer", acme)]).status_code == 200  # changes nothing, and says nothing
        assert held() == {f"maintainer:{acme}", f"reader:{beta}"}
        assert change(boss, replace=[]).json()["grants"] == []
        assert held() == {f"reader:{beta}"}
        problem(change(boss, add=[grant("reader", acme)]), "not-found")  # no more theirs to see
        problem(change(root, remove=[beta]), "conflict")
        assert change(root, replace=[grant("writer", acme), grant("reader", "*")]).status_code == 200
        assert held() == {f"writer:{acme}", "reader:*"}
        told = [event["facts"] for event in changes(root, name)]
        assert [(facts["before"], facts["after"]) for facts in told] == [
            *(("writer", "maintainer"), ("maintainer", None)),
            *((None, "reader"), (None, "writer"), ("reader", None)),
        ]
        assert len(changes(boss, name)) == 3
        assert changes(other, name) == []
    site.run("token", "grants", name, "--add", f"reader:{beta}", "--remove", "*")
    assert held() == {f"writer:{acme}", f"reader:{beta}"}
    site.run("token", "revoke", name)
    with pytest.raises(AssertionError, match="was revoked"):
        site.run("token", "grants", name, "--add", f"writer:{beta}")


def changes(client: httpx.Client, name: str) -> list[dict[str, Any]]:
    """The events of changes of a token's grants that a caller may read."""
    items: list[dict[str, Any]] = []
    page: dict[str, Any] = {"items": [{}], "next_cursor": None}
    while page["items"]:
        after = {"after": page["next_cursor"]} if page["next_cursor"] else {}
        page = client.get("/api/v1/events", params={"limit": 1000, **after}).json()
        items += page["items"]
    return [item for item in items if (item["kind"], item["subject"]) == ("grants-changed", name)]
