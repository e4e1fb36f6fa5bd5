"""Signing in: people at a real OpenID provider, CI jobs by their identity tokens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from lora_contract.errors import RegistryError
from lora_contract.wire.identity import LoginOptions
from lora_reg import identity, sign_in
from lora_reg.config import Settings
from lora_reg.sign_in import Provider
from lora_reg.transport import Transport
from tests.support import node, service
from tests.support.command import Home, Said
from tests.support.issuer import AUDIENCE, Issuer, actions, github, gitlab, issuer, kubernetes, trust
from tests.support.processes import free_ports
from tests.support.provider import CLIENT_ID, SCOPES, provider, visit


@pytest.fixture(scope="module")
def provided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if (absent := node.missing()) is not None:
        pytest.skip(f"the OpenID provider of the tests needs Node: {absent}")
    with provider(tmp_path_factory.mktemp("provider")) as url:
        yield url


@pytest.fixture(scope="module")
def people(provided: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.InProcess]:
    """A registry at which members of the group `ml` may write in `acme`."""
    extra = {"LORA_REG_AUTH": "token", "LORA_REG_LOGIN_ISSUER": provided, "LORA_REG_LOGIN_CLIENT_ID": CLIENT_ID}
    with service.in_process(tmp_path_factory.mktemp("people") / "data", extra) as running:
        trust(running, "ml", "--group", "ml", "--grant", "writer:acme")
        trust(running, "ops", "--group", "ops", "--grant", "reader:*")
        yield running


@pytest.fixture(scope="module")
def made() -> Iterator[Issuer]:
    with issuer() as running:
        yield running


@pytest.fixture(scope="module")
def jobs(made: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.InProcess]:
    """A registry that trusts a workflow of GitHub and a project of GitLab."""
    with service.in_process(tmp_path_factory.mktemp("jobs") / "data", {"LORA_REG_AUTH": "token"}) as running:
        ids = ("--repository-id", "74", "--owner-id", "65", "--workflow", "adapter.yml", "--ref", "main")
        trust(running, "gh", "--github", "acme/sql-writer", *ids, "--issuer", made.url, "--grant", "writer:acme")
        ids = ("--project-id", "20", "--namespace-id", "72", "--ref", "main")
        trust(running, "gl", "--gitlab", "acme/sql-writer", *ids, "--issuer", made.url, "--grant", "writer:acme")
        account = ("--kubernetes", "serving/vllm", "--uid", "14ee3fa4")
        trust(running, "vllm", *account, "--issuer", made.url, "--grant", "reader:acme")
        yield running


def run(home: Home, *arguments: str, **environ: str) -> Said:
    """A command with more in its environment."""
    with mock.patch.object(Home, "environment", {**home.environment, **environ}):
        return home.run(*arguments)


def as_person(home: Home, account: str, *arguments: str) -> Said:
    """Run a command during which a person signs in at the pages that it names."""
    visits: list[threading.Thread] = []

    def follow(url: str) -> bool:
        visits.append(threading.Thread(target=visit, args=(url, account)))
        visits[-1].start()
        return True

    say = mock.Mock(side_effect=lambda text: text.startswith("or open ") and follow(text.split()[-1]))
    with (
        mock.patch("webbrowser.open", follow),
        mock.patch("lora_reg.cli.output.Output.say", say),
        mock.patch.object(sign_in, "POLL_SECONDS", 0.1),
        mock.patch.object(sign_in, "can_open_browser", lambda: True),
    ):
        said = home.run(*arguments)
    for each in visits:
        each.join()
    return said


@pytest.mark.parametrize(
    ("account", "arguments"), [("alice", ["--oidc"]), ("carol", ["--oidc", "--device"]), ("dan", ["--device"])]
)
def test_a_person_signs_in(people: service.InProcess, tmp_path: Path, account: str, arguments: list[str]) -> None:
    """Each by another: of one, the provider makes the same token twice within a second."""
    home = Home(tmp_path, people.url)
    said = as_person(home, account, "login", people.url, *arguments, "--json")
    assert said.status == 0, said.err
    name = said.document["principal"]["name"]
    assert name.startswith(f"{account}#")
    me = home.json("whoami")["principal"]
    assert (me["name"], me["grants"]) == (
        name,
        [{"pattern": "*", "role": "reader"}, {"pattern": "acme", "role": "writer"}],
    )
    stored = tmp_path / "config" / "lora-reg" / "credentials.json"
    assert stored.stat().st_mode & 0o777 == 0o600
    assert "refresh" not in stored.read_text()
    assert home.json("logout")["revoked"] is True


def test_signing_out_ends_the_token_of_this_sign_in_alone(people: service.InProcess, tmp_path: Path) -> None:
    here, there = (Home(tmp_path / name, people.url) for name in ("here", "there"))
    for home, way in ((here, "--oidc"), (there, "--device")):
        time.sleep(1.1)  # the provider makes the same token twice within a second
        assert as_person(home, "alice", "login", people.url, way).status == 0
    assert "Its token was revoked." in here.ok("logout").out
    assert "No token is stored" in here.ok("logout").out
    assert there.json("whoami")["principal"]["name"].startswith("alice#")
    stored = there.folder / "config" / "lora-reg" / "credentials.json"
    pasted = tmp_path / "token"
    pasted.write_text(json.loads(stored.read_text())["servers"][people.url]["token"])
    here.ok("login", people.url, "--token-file", pasted)
    assert "that you entered stays valid" in here.ok("logout").out
    assert there.json("whoami")["principal"]["name"].startswith("alice#")
    (port,) = free_ports(1)
    gone = f"http://127.0.0.1:{port}"
    stored.write_text(stored.read_text().replace(people.url, gone))
    assert "could not be revoked, and stays valid until it expires" in there.ok("logout", "--server", gone).out
    assert "hf_" not in stored.read_text()


def test_a_person_without_a_group_is_not_let_in(people: service.InProcess, tmp_path: Path) -> None:
    home = Home(tmp_path, people.url)
    said = as_person(home, "bob", "login", people.url, "--oidc")
    assert said.status == 4
    assert "No trust rule accepts the identity token." in said.err
    assert not (tmp_path / "config").exists()


def test_a_registry_without_a_provider_says_so(jobs: service.InProcess, tmp_path: Path) -> None:
    said = Home(tmp_path, jobs.url).run("login", jobs.url, "--oidc")
    assert said.status != 0
    assert "names no OpenID provider" in said.err
    said = Home(tmp_path, jobs.url).run("login", jobs.url, "--oidc", "--token-stdin")
    assert said.status == 2


def test_what_the_provider_and_the_redirect_may_not_do(provided: str) -> None:
    options = LoginOptions(auth="token", audience=AUDIENCE, issuer=provided, client_id=CLIENT_ID, scopes=SCOPES)

    def by_browser(**change: str | None) -> None:
        """Sign in, with other parameters in the redirect than the provider sends."""
        client = Provider(options)

        def open_url(url: str) -> None:
            query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
            back = {"state": query["state"], "code": "x", **change}
            given = {name: value for name, value in back.items() if value is not None}
            threading.Thread(target=lambda: httpx.get(query["redirect_uri"], params=given)).start()

        try:
            client.by_browser(lambda _: None, open_url)
        finally:
            client.close()

    with pytest.raises(RegistryError, match="invalid_grant"):
        by_browser()
    with pytest.raises(RegistryError, match="another issuer"):
        by_browser(iss="https://evil.example")
    with pytest.raises(RegistryError, match="access_denied"):
        by_browser(code=None, error="access_denied", error_description="no")
    with mock.patch("lora_reg.callback.WAIT_SECONDS", 1), pytest.raises(RegistryError, match="Nobody signed in"):
        by_browser(state="another")
    with pytest.raises(RegistryError, match="expected https"):
        Provider(LoginOptions(auth="token", audience="x", issuer="http://issuer.example", client_id="x"))
    with issuer() as other, pytest.raises(RegistryError, match="calls itself"):
        Provider(LoginOptions(auth="token", audience="x", issuer=other.url + "/", client_id="x"))


def test_the_answers_while_nobody_has_entered_the_code(provided: str) -> None:
    options = LoginOptions(auth="token", audience=AUDIENCE, issuer=provided, client_id=CLIENT_ID, scopes=SCOPES)
    slept: list[float] = []
    started = {"device_code": "d", "user_code": "u", "verification_uri": "https://x", "expires_in": 600}

    def by_device(*answers: dict[str, Any]) -> str:
        slept.clear()
        client = Provider(options, sleep=slept.append)
        with mock.patch.object(client, "_post", side_effect=[started, *answers]):
            try:
                return client.by_device(lambda _: None)
            finally:
                client.close()

    pending, slow = {"error": "authorization_pending"}, {"error": "slow_down"}
    assert by_device(pending, slow, pending, {"id_token": "x"}) == "x"
    assert slept == [5, 5, 10, 10]
    for error in ("access_denied", "expired_token"):
        with pytest.raises(RegistryError, match=error):
            by_device(pending, {"error": error})
    with pytest.raises(RegistryError, match="no identity token"):
        by_device({"access_token": "x"})
    started["expires_in"] = 0
    with pytest.raises(RegistryError, match="expired before"):
        by_device()


@pytest.mark.parametrize(
    ("environ", "opens"),
    [
        ({"DISPLAY": ":0"}, True),
        ({"WAYLAND_DISPLAY": "w"}, True),
        ({}, False),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "x"}, False),
    ],
)
def test_when_a_browser_is_opened(environ: dict[str, str], opens: bool) -> None:
    assert sign_in.can_open_browser(environ) is opens


def test_a_workflow_signs_in_by_itself(jobs: service.InProcess, made: Issuer, tmp_path: Path) -> None:
    home = Home(tmp_path, jobs.url)
    with actions(made, github()) as environ:
        for _ in range(2):
            said = run(home, "whoami", "--json", **environ)
            assert said.status == 0, said.err
            assert said.document["principal"]["name"] == "main@fa1e0c2b7d9b#gh"
        token = run(home, "ci-token", **environ)
        assert token.status == 0, token.err
        assert token.out.startswith("hf_")
        assert run(home, "whoami", LORA_REG_TOKEN=token.out.strip()).status == 0
        assert run(home, "whoami", **environ, LORA_REG_TOKEN="hf_wrong").status == 4  # noqa: S106
        assert not (tmp_path / "config").exists()  # nothing for the next job of the machine
    with actions(made, github(ref="refs/heads/topic")) as environ:
        said = run(home, "whoami", **environ)
        assert said.status == 4
        assert "No trust rule accepts the identity token." in said.err
    wrong = {**environ, identity.GITHUB_URL: "http://runner.example/token?x"}
    assert "expected an https URL" in run(home, "whoami", **wrong).err
    assert run(home, "ci-token").status == 2


def test_a_job_of_gitlab_exchanges_its_token_once(jobs: service.InProcess, made: Issuer, tmp_path: Path) -> None:
    home = Home(tmp_path, jobs.url)
    environ = {identity.ID_TOKEN: made.token(gitlab())}
    token = run(home, "ci-token", "--json", **environ)
    assert token.status == 0, token.err
    assert token.document["name"] == "main@714a629c0b40#gl"
    again = run(home, "whoami", **environ)
    assert again.status == 4
    assert "was exchanged before" in again.err
    assert run(home, "whoami", **environ, LORA_REG_TOKEN=token.document["token"]).status == 0
    tagged = {identity.ID_TOKEN: made.token(gitlab(ref_type="tag"))}
    assert run(home, "whoami", **tagged).status == 4  # a tag that is named like the branch


def test_a_token_is_renewed_before_it_expires(jobs: service.InProcess, made: Issuer) -> None:
    with actions(made, github()) as environ:
        tokens = identity.JobTokens(jobs.url, environ)
        first = tokens()
        assert first is not None
        assert tokens() == first
        tokens._ends -= 14.5 * 60
        second = tokens()
        assert second not in (None, first)
    tokens._ends -= 14.5 * 60
    assert tokens() == second  # it is still valid, and GitHub does not answer
    assert tokens.refusal is not None


def test_a_token_file_is_read_for_each_request(jobs: service.InProcess, made: Issuer, tmp_path: Path) -> None:
    home, file = Home(tmp_path, jobs.url), tmp_path / "token"
    file.write_text(made.token(kubernetes()) + "\n")
    said = run(home, "whoami", "--json", LORA_REG_TOKEN_FILE=str(file))
    assert said.status == 0, said.err
    assert said.document["principal"]["name"] == "serving/vllm#vllm"
    transport = Transport(jobs.url, Settings(jobs.url, token_file=file).bearer)
    assert transport.request("GET", transport.url("/api/v1/whoami")).status_code == 200
    file.write_text("hf_wrong")
    with pytest.raises(RegistryError, match="unknown"):
        transport.request("GET", transport.url("/api/v1/whoami"))
    file.unlink()
    with pytest.raises(RegistryError):
        transport.request("GET", transport.url("/api/v1/whoami"))
    transport.close()


def test_a_registry_without_login_needs_no_token(made: Issuer, tmp_path: Path) -> None:
    with service.in_process(tmp_path / "data") as running, actions(made, github()) as environ:
        home = Home(tmp_path, running.url)
        assert run(home, "whoami", **environ).status == 0
        assert run(home, "ci-token", **environ).status == 5
