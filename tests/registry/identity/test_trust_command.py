"""`lora-registry trust`: its options as claims, what it prints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lora_registry.cli import main
from tests.support import service
from tests.support.databases import sqlite_in
from tests.support.issuer import Key

CLUSTER = "https://kubernetes.default.svc.cluster.local"
ACTIONS = "https://token.actions.githubusercontent.com"
PERSON = {"LORA_REG_LOGIN_ISSUER": "https://login.example", "LORA_REG_LOGIN_CLIENT_ID": "lora-reg"}
GITHUB = ("--github", "acme/sql-writer", "--repository-id", "74", "--owner-id", "65")
GITLAB = ("--gitlab", "acme/sql-writer", "--project-id", "20", "--namespace-id", "72")
GRANT = ("--grant", "writer:acme")


class Command:
    def __init__(self, data: Path) -> None:
        sqlite_in(data)
        self.environment = service.environment(data, PERSON)

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["trust", *arguments], env=self.environment)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    yield Command(tmp_path_factory.mktemp("trust"))


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (
            GITHUB,
            ["repository_id = 74", "repository_owner_id = 65", "https://token.actions.githubusercontent.com", "15m"],
        ),
        ((*GITHUB, "--ref", "main"), ["ref = refs/heads/main"]),
        ((*GITHUB, "--ref", "refs/tags/v*"), ["ref = refs/tags/v*"]),
        (
            (*GITHUB, "--workflow", "adapter.yml", "--environment", "prod", "--life", "30m", "--pull-requests"),
            [
                "job_workflow_ref = acme/sql-writer/.github/workflows/adapter.yml",
                "environment = prod",
                "30m",
                "pull requests may write",
            ],
        ),
        (GITLAB, ["project_id = 20", "namespace_id = 72", "https://gitlab.com"]),
        ((*GITLAB, "--ref", "main"), ["ref = main", "ref_type = branch"]),
        ((*GITLAB, "--ref", "refs/tags/v*"), ["ref = v*", "ref_type = tag"]),
        (
            ("--kubernetes", "serving/vllm", "--uid", "x", "--issuer", CLUSTER),
            [
                "kubernetes.io/namespace = serving",
                "kubernetes.io/serviceaccount/name = vllm",
                "kubernetes.io/serviceaccount/uid = x",
            ],
        ),
        (("--group", "ml"), ["groups = ml", "https://login.example", "'lora-reg'", "480m"]),
        (("--person", "--claim", "sub=u1"), ["sub = u1"]),
        (("--issuer", "https://ci.example", "--claim", "sub=x", "--audience", "y"), ["sub = x", "audience y"]),
    ],
)
def test_a_rule_is_added_listed_and_removed(command: Command, arguments: tuple[str, ...], shown: list[str]) -> None:
    added = command("add", "one", *arguments, *GRANT, "--note", "for\nthe demo")
    assert added.exit_code == 0, added.output
    listed = command("list").output
    for text in (*shown, "writer:acme", "for the demo"):
        assert text in listed + added.output
    (item,) = json.loads(command("list", "--json").output)["items"]
    assert (item["name"], item["grants"]) == ("one", [{"pattern": "acme", "role": "writer"}])
    assert command("remove", "one").exit_code == 0
    assert command("list").output == ""


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("--github", "acme/sql-writer"), 2, "repository_id and repository_owner_id is missing"),
        ((*GITHUB, "--claim", "sub=x"), 2, "cannot compare the claim 'sub'"),
        ((*GITHUB, *GITLAB), 2, "github and gitlab; expected one"),
        (("--repository-id", "74"), 2, "belongs to --github"),
        (("--gitlab", "a/b", "--uid", "x"), 2, "belongs to --kubernetes"),
        ((*GITLAB, "--ref", "refs/merge-requests/1"), 2, "neither a branch nor a tag"),
        (("--kubernetes", "vllm", "--issuer", CLUSTER), 2, "expected NAMESPACE/ACCOUNT"),
        (("--kubernetes", "serving/vllm"), 2, "needs an issuer"),
        (("--claim", "sub"), 2, "expected NAME=VALUE"),
        (("--issuer", "http://ci.example", "--claim", "sub=x"), 2, "expected an https URL"),
        (("--issuer", "https://ci.example", "--claim", "email=a@b"), 2, "names no immutable id"),
        (("--issuer", f"{ACTIONS}/", "--claim", "sub=repo:a/b:ref:x"), 2, "is the issuer of github"),
        (("--issuer", "https://gitlab.com", "--claim", "user_id=7"), 2, "is the issuer of gitlab"),
        ((*GITHUB, "--life", "2x"), 2, "not a duration"),
        ((*GITHUB, "--life", "2d"), 2, "seconds"),
        ((*GITHUB, "--grant", "owner:acme"), 2, "not a role"),
    ],
)
def test_what_is_refused(command: Command, arguments: tuple[str, ...], status: int, text: str) -> None:
    result = command("add", "wrong", *arguments, *GRANT)
    assert result.exit_code == status, result.output
    assert text in " ".join(result.output.split())
    assert command("list").output == ""


def test_the_keys_of_an_issuer(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [Key("a", "ES256").jwk]}))
    empty = tmp_path / "empty.json"
    empty.write_text('{"keys": []}')
    cluster = ("--kubernetes", "serving/vllm", "--issuer", CLUSTER, "--grant", "reader:acme")
    assert "no public signing key" in command("add", "vllm", *cluster, "--jwks-file", str(empty)).output
    assert "no certificate" in command("add", "vllm", *cluster, "--ca-bundle", str(empty)).output
    both = ("--jwks-file", str(file), "--jwks-url", "https://x.example/jwks")
    assert "as a URL and as a file" in command("add", "vllm", *cluster, *both).output
    assert command("add", "vllm", *cluster, "--jwks-file", str(file)).exit_code == 0
    assert command("keys", CLUSTER, "--jwks-url", "https://x.example/jwks").exit_code == 0
    assert command("keys", CLUSTER).exit_code == 0
    assert command("keys", "https://unknown.example").exit_code == 3
    assert command("remove", "vllm").exit_code == 0
    assert command("remove", "vllm").exit_code == 3


def test_half_of_a_provider_is_refused(tmp_path: Path) -> None:
    environment = {**service.environment(tmp_path), "LORA_REG_LOGIN_ISSUER": "https://login.example"}
    result = CliRunner().invoke(main, ["trust", "list"], env=environment)
    assert result.exit_code == 2
    assert "LORA_REG_LOGIN_CLIENT_ID" in result.output
