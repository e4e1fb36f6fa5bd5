"""Trust rules: which token gets what, and which rules are refused."""

from __future__ import annotations

from typing import Any

import pytest

from lora_contract.roles import Grant, parse_grant
from lora_registry.gates.approvals import of_others
from lora_registry.oidc.refusal import RefusedTokenError
from lora_registry.oidc.rules import KindName, Trusted, TrustRule, choose, problem_of
from lora_registry.oidc.verify import Identity, _flat
from tests.support.issuer import AUDIENCE, github, gitlab, kubernetes

ISSUER = "https://issuer.example"
IDS = {"repository_id": "74", "repository_owner_id": "65"}
PROJECT = {"project_id": "20", "namespace_id": "72"}
ACCOUNT = {"kubernetes.io/namespace": "serving", "kubernetes.io/serviceaccount/name": "vllm"}


def rule(
    number: int, claims: dict[str, str], grants: str = "writer:acme", kind: KindName = "github", **more: Any
) -> TrustRule:
    given = tuple(parse_grant(each) for each in grants.split())
    fields = {"issuer": ISSUER, "audience": AUDIENCE, "seconds": 900, **more}
    return TrustRule(id=number, name=f"rule-{number}", kind=kind, claims=claims, grants=given, **fields)


def identity(claims: dict[str, Any], **more: Any) -> Identity:
    fields = {"issuer": ISSUER, "audience": AUDIENCE, "access": False, "expires_at": 0, "once": "x", **more}
    return Identity(claims=_flat(claims), **fields)


def given(rules: list[TrustRule], claims: dict[str, Any], **more: Any) -> Trusted | None:
    try:
        return choose(rules, identity(claims, **more))
    except RefusedTokenError:
        return None


@pytest.mark.parametrize(
    ("claims", "matching"),
    [
        (IDS, True),
        ({**IDS, "ref": "refs/heads/main"}, True),
        ({**IDS, "ref": "refs/heads/*"}, True),
        ({**IDS, "ref": "refs/tags/*"}, False),
        ({**IDS, "ref": "refs/heads/mai"}, False),
        ({**IDS, "environment": "prod"}, False),
        ({**IDS, "repository_id": "75"}, False),
        ({**IDS, "repository_owner_id": "66"}, False),
        ({**IDS, "job_workflow_ref": "acme/sql-writer/.github/workflows/adapter.yml"}, True),
        ({**IDS, "job_workflow_ref": "acme/sql-writer/.github/workflows/adapter.yml@refs/heads/main"}, True),
        ({**IDS, "job_workflow_ref": "acme/sql-writer/.github/workflows/adapter.yml@refs/heads/x"}, False),
        ({**IDS, "job_workflow_ref": "acme/sql-writer/.github/workflows/adapter"}, False),
        ({**IDS, "job_workflow_ref": "evil/sql-writer/.github/workflows/adapter.yml"}, False),
    ],
)
def test_claims_of_a_workflow(claims: dict[str, str], matching: bool) -> None:
    assert (given([rule(1, claims)], github()) is not None) is matching


def test_issuer_and_audience_are_those_of_the_rule() -> None:
    assert given([rule(1, IDS)], github()) is not None
    assert given([rule(1, IDS)], github(), audience="another") is None
    assert given([rule(1, IDS)], github(), issuer="https://other.example") is None
    assert given([rule(1, IDS)], github(), access=True) is None
    assert given([rule(1, {"client_id": "7"}, kind="other")], {"client_id": 7}, access=True) is not None
    assert given([], github()) is None


def test_the_most_specific_rule_decides() -> None:
    wide = rule(1, IDS, "reader:acme")
    branch = rule(2, {**IDS, "ref": "refs/heads/*"}, "writer:acme")
    main = rule(3, {**IDS, "ref": "refs/heads/main"}, "maintainer:acme", seconds=300)
    found = given([wide, branch, main], github())
    assert found is not None
    assert (found.grants, found.seconds, found.name) == (
        (Grant("acme", "maintainer"),),
        300,
        "main@fa1e0c2b7d9b#rule-3",
    )
    other = given([wide, branch, main], github(ref="refs/heads/topic"))
    assert other is not None
    assert other.grants == (Grant("acme", "writer"),)
    tagged = given([wide, branch, main], github(ref="refs/tags/v1"))
    assert tagged is not None
    assert tagged.grants == (Grant("acme", "reader"),)


@pytest.mark.parametrize("event", ["pull_request", "pull_request_target", "pull_request_review"])
def test_pull_requests_write_only_if_the_rule_says_so(event: str) -> None:
    claims = github(event_name=event, ref="refs/pull/7/merge")
    assert given([rule(1, IDS)], claims) is None
    assert given([rule(1, IDS, "reader:acme writer:acme-dev")], claims) is None
    assert given([rule(1, IDS, "reader:acme")], claims) is not None
    assert given([rule(1, IDS, pull_requests=True)], claims) is not None
    found = given([rule(1, IDS), rule(2, IDS, "reader:acme")], claims)
    assert found is not None
    assert found.grants == (Grant("acme", "reader"),)


def test_merge_requests_and_the_protected_branch_of_gitlab() -> None:
    protected = rule(1, {**PROJECT, "ref_protected": "true"}, kind="gitlab")
    assert given([protected], gitlab()) is not None
    assert given([protected], gitlab(ref_protected=True)) is not None
    assert given([protected], gitlab(ref_protected="false")) is None
    assert given([protected], gitlab(project_id=20)) is not None
    assert given([protected], gitlab(namespace_id="73")) is None
    for source in ("merge_request_event", "external_pull_request_event"):
        assert given([protected], gitlab(pipeline_source=source)) is None


def test_a_service_account() -> None:
    claims = kubernetes()
    found = given([rule(1, ACCOUNT, "reader:acme", "kubernetes")], claims)
    assert found is not None
    assert found.name == "serving/vllm#rule-1"
    again = {**ACCOUNT, "kubernetes.io/serviceaccount/uid": "another"}
    assert given([rule(1, again, "reader:acme", "kubernetes")], claims) is None
    assert given([rule(1, ACCOUNT, "reader:acme", "kubernetes")], kubernetes("other")) is None
    assert given([rule(1, ACCOUNT, "reader:acme", "kubernetes")], kubernetes(account="other")) is None
    forged = {"kubernetes.io": "serving", "sub": claims["sub"]}
    assert given([rule(1, ACCOUNT, "reader:acme", "kubernetes")], forged) is None


def test_the_groups_of_a_person_add_up() -> None:
    rules = [
        rule(1, {"groups": "ml"}, "writer:acme", "person"),
        rule(2, {"groups": "ops", "hd": "acme.example"}, "admin:acme-ops", "person", seconds=600),
        rule(3, {"groups": "board"}, "admin:*", "person"),
    ]
    claims = {"sub": "u1", "preferred_username": "alice", "groups": ["ml", "ops"], "hd": "acme.example"}
    found = given(rules, claims)
    assert found is not None
    assert (found.grants, found.seconds) == ((Grant("acme", "writer"), Grant("acme-ops", "admin")), 600)
    name, _, origin = found.name.partition("#")
    assert name == "alice"
    assert len(origin) == 12
    renamed = given(rules, {**claims, "preferred_username": "bob#x\n"})
    assert renamed is not None
    assert renamed.name == f"bob-x-#{origin}"
    other = given(rules, {**claims, "sub": "u2"})
    assert other is not None
    assert other.name.rpartition("#")[2] != origin
    assert given(rules, {**claims, "sub": None}) is None
    assert given(rules, {**claims, "azp": "another-client"}) is None
    assert given(rules, {**claims, "azp": AUDIENCE}) is not None
    assert given(rules, {**claims, "groups": []}) is None
    assert given(rules, {**claims, "groups": [["ml"]]}) is None


def test_a_long_ref_does_not_break_the_name() -> None:
    found = given([rule(1, IDS)], github(ref=f"refs/heads/{'x#' * 200}"))
    assert found is not None
    assert len(found.name) <= 100
    assert found.name.endswith("@fa1e0c2b7d9b#rule-1")
    assert found.name.count("#") == 1


@pytest.mark.parametrize(
    ("kind", "claims", "text"),
    [
        ("github", {}, "repository_id and repository_owner_id is missing"),
        ("github", {"repository": "acme/sql-writer"}, "repository_id"),
        ("github", {"repository_id": "74", "ref": "refs/heads/main"}, "repository_owner_id is missing"),
        ("github", {**IDS, "sub": "repo:acme/sql-writer:ref:refs/heads/main"}, "two forms"),
        ("gitlab", {"project_path": "acme/sql-writer"}, "project_id"),
        ("gitlab", {**PROJECT, "sub": "x"}, "names"),
        ("kubernetes", {"sub": "system:serviceaccount:serving:vllm"}, "kubernetes.io/namespace"),
        ("kubernetes", {"kubernetes.io/namespace": "serving"}, "serviceaccount/name is missing"),
        ("person", {"email": "alice@acme.example"}, "immutable"),
        ("person", {"preferred_username": "alice"}, "immutable"),
        ("other", {"name": "x", "email": "y"}, "immutable"),
        ("other", {"sub": "*"}, "only the value of `ref`"),
        ("other", {"sub": ""}, "1 to 512"),
        ("other", {"sub": "a\nb"}, "printable"),
        ("other", {"sub": "x" * 600}, "1 to 512"),
        ("other", {"sub": "x", "aud": "y"}, "checked for every token"),
        ("other", {f"id{n}_id": "x" for n in range(21)}, "at most 20"),
    ],
)
def test_rules_that_are_refused(kind: KindName, claims: dict[str, str], text: str) -> None:
    problem = problem_of(kind, claims)
    assert problem is not None
    assert text in problem


@pytest.mark.parametrize(
    ("kind", "claims"),
    [
        ("github", {**IDS, "ref": "refs/heads/release-*"}),
        ("gitlab", PROJECT),
        ("kubernetes", ACCOUNT),
        ("person", {"groups": "ml"}),
        ("person", {"https://acme.example/groups": "ml"}),
        ("person", {"sub": "u1"}),
        ("other", {"sub": "x"}),
        ("other", {"project_id": "x"}),
        ("other", {"kubernetes.io/pod/uid": "x"}),
    ],
)
def test_rules_that_are_taken(kind: KindName, claims: dict[str, str]) -> None:
    assert problem_of(kind, claims) is None


def test_commits_of_one_pipeline_do_not_approve_each_other() -> None:
    given = [("main@aaa#acme-ci", "writer"), ("x@bbb#acme-ci", "writer"), ("alice", "admin"), ("bob", "writer")]
    assert of_others(given, "y@ccc#acme-ci") == [("alice", "admin"), ("bob", "writer")]
    assert of_others(given, "alice") == [
        ("main@aaa#acme-ci", "writer"),
        ("main@aaa#acme-ci", "writer"),
        ("bob", "writer"),
    ]
