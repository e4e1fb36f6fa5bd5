from __future__ import annotations

import pytest

from lora_registry.hub.names import LATEST, RepositoryCandidate, is_exact, selector, targets

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_an_id_of_one_part_is_in_the_default_namespace() -> None:
    assert targets("gpt2") == [RepositoryCandidate("default", "gpt2")]


def test_dots_may_cut_off_a_tag_or_a_version() -> None:
    assert targets("team/a.v1.2.3") == [
        RepositoryCandidate("team", "a.v1.2.3"),
        RepositoryCandidate("team", "a.v1.2", "3"),
        RepositoryCandidate("team", "a.v1", "2.3"),
        RepositoryCandidate("team", "a", "v1.2.3"),
    ]
    assert targets("team/a.Prod") == [RepositoryCandidate("team", "a.Prod"), RepositoryCandidate("team", "a", "Prod")]
    assert targets("team/a.v12")[1] == RepositoryCandidate("team", "a", "v12")


def test_names_may_have_capitals() -> None:
    assert targets("Qwen/Qwen2") == [RepositoryCandidate("Qwen", "Qwen2")]


@pytest.mark.parametrize("text", ["Qwen_/Qwen2", "team/", "te am/a", "team/-a", "../a", "team/A_"])
def test_what_is_no_name_of_ours_means_nothing(text: str) -> None:
    assert targets(text) == []


def test_what_cannot_be_a_tag_is_not_cut_off() -> None:
    assert targets("team/a.V1") == [RepositoryCandidate("team", "a.V1")]
    assert targets("team/a.v0") == [RepositoryCandidate("team", "a.v0")]


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("main", LATEST),
        ("latest", LATEST),
        ("refs/heads/main", LATEST),
        ("prod", "prod"),
        ("refs/tags/prod", "prod"),
        ("refs/tags/main", "main"),
        ("refs/tags/latest", None),
        ("refs/tags/v1", "v1"),
        ("v12", "v12"),
        (COMMIT, COMMIT),
        ("refs/pr/1", None),
        ("feat/x", None),
        (COMMIT[:12], COMMIT[:12]),  # no abbreviation of a commit, but a tag may be called so
        (COMMIT.upper(), COMMIT.upper()),
        ("sha256:" + "0" * 64, None),
        ("prod@sha256:" + "0" * 64, None),
        ("", None),
        ("..", None),
        ("prod\n", None),
    ],
)
def test_revisions(revision: str, expected: str | None) -> None:
    assert selector(revision) == expected


def test_versions_and_commits_are_exact_and_tags_are_not() -> None:
    assert [is_exact(text) for text in ("v12", COMMIT, "prod", "v0", COMMIT + "0", "main")] == [True, True] + [
        False
    ] * 4
