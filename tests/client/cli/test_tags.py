"""Tags and versions by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import TINY, Home, fresh, variant


@pytest.fixture
def name(home: Home, tmp_path: Path) -> str:
    """A repository with two versions."""
    name = f"{fresh()}/queries"
    for seed in (1, 2):
        home.ok("push", variant(tmp_path / f"v{seed}", seed=seed), "--base", "tiny", name, "-m", f"number {seed}")
    return name


def test_a_tag_moves_with_its_history(home: Home, name: str) -> None:
    said = home.ok("tag", f"{name}:v1", "prod", "--reason", "first")
    assert said.out.startswith(f"{name}:prod -> v1  sha256:")
    home.ok("tag", name, "prod", "--reason", "newest")
    moves = home.json("history", f"{name}:prod")
    assert (moves["tag"], moves["versions"]) == ("prod", [])
    assert [(m["from_number"], m["to_number"], m["reason"]) for m in moves["moves"]] == [
        (1, 2, "newest"),
        (None, 1, "first"),
    ]
    both = home.ok("history", name).out
    assert "number 2" in both
    assert "v1 -> v2" in both
    assert home.ok("show", f"{name}:prod", "-q").out == f"{name}:v2\n"


def test_compare_and_swap(home: Home, name: str) -> None:
    home.ok("tag", f"{name}:v1", "prod", "--expect", "none")
    said = home.run("tag", f"{name}:v2", "prod", "--expect", "none", "--json")
    assert said.status == 5
    assert said.document["code"] == "tag-moved"
    home.ok("tag", f"{name}:v2", "prod", "--expect", "v1")
    for expect in ("v1", f"{name}:v1", home.json("show", f"{name}:v1")["digest"]):
        said = home.run("tag", f"{name}:v1", "prod", "--expect", expect, "--json")
        assert said.status == 5
        assert said.document["current"]["version"]["number"] == 2
    home.ok("tag", f"{name}:v1", "prod", "--expect", f"{name}@{home.json('show', f'{name}:v2')['digest']}")
    assert home.run("tag", f"{name}:v1", "prod", "--expect", "other/repository:v1").status == 2


def test_a_protected_tag_wants_the_present_version_named(home: Home, name: str) -> None:
    home.ok("tag", f"{name}:v1", "prod")
    assert home.ok("protect", f"{name}:prod").out.rstrip().endswith("protected")
    said = home.run("tag", f"{name}:v2", "prod")
    assert said.status == 5
    assert "--expect" in said.err
    assert home.run("untag", f"{name}:prod").status == 5
    home.ok("tag", f"{name}:v2", "prod", "--expect", "v1")
    home.ok("rollback", f"{name}:prod", "--reason", "worse")
    home.ok("unprotect", f"{name}:prod")
    home.ok("tag", f"{name}:v2", "prod")
    home.ok("untag", f"{name}:prod", "--expect", "v2")
    assert home.run("show", f"{name}:prod").status == 3


def test_rollback(home: Home, name: str) -> None:
    home.ok("tag", f"{name}:v1", "prod")
    home.ok("tag", f"{name}:v2", "prod")
    said = home.ok("rollback", f"{name}:prod", "--reason", "regression")
    assert "-> v1" in said.out
    assert "(was v2)" in said.out
    assert home.json("rollback", f"{name}:prod", "--to", "v2")["version"]["number"] == 2
    assert home.json("rollback", f"{name}:prod", "--to", f"{name}:v1")["version"]["number"] == 1
    assert home.run("rollback", name).status == 2


def test_tags_are_listed(home: Home, name: str) -> None:
    assert "has no tags" in home.ok("tags", name).err
    home.ok("tag", f"{name}:v1", "prod")
    home.ok("tag", f"{name}:v2", "candidate")
    home.ok("protect", f"{name}:prod")
    assert home.ok("tags", name, "-q").out == f"{name}:candidate\n{name}:prod\n"
    rows = [line.split() for line in home.ok("tags", name).out.splitlines()]
    assert [(row[0], row[1], row[-1] == "protected") for row in rows[1:]] == [
        ("candidate", "v2", False),
        ("prod", "v1", True),
    ]
    said = home.run("tag", "list", name)
    assert (said.status, f"lora-reg tags {name}" in said.err) == (2, True)


@pytest.mark.parametrize("tag", ["latest", "v3", "a" * 40, "two words", ""])
def test_a_tag_that_cannot_be_one(home: Home, name: str, tag: str) -> None:
    assert home.run("tag", f"{name}:v1", tag).status == 2


def test_yank_warns_and_is_taken_back(home: Home, name: str) -> None:
    assert home.run("yank", f"{name}:v1").status == 2
    home.ok("yank", f"{name}:v1", "--reason", "trained on the wrong data")
    said = home.ok("pull", f"{name}:v1")
    assert "warning: this version was yanked: trained on the wrong data" in said.err
    # The second pull is answered by 304 and the third by the cache alone: both still know.
    for again in (home.ok("pull", f"{name}:v1"), home.ok("pull", f"{name}:v1", "--offline")):
        assert "warning: this version was yanked: trained on the wrong data" in again.err
    home.ok("unyank", f"{name}:v1")
    assert "yanked" not in home.ok("pull", f"{name}:v1").err


def test_delete_asks_and_leaves_what_is_in_use(home: Home, name: str) -> None:
    home.ok("tag", f"{name}:v2", "prod")
    assert home.run("delete", f"{name}:v1").status == 2
    assert home.run("delete", f"{name}:prod", "--yes").status == 2
    assert home.run("delete", f"{name}:v2", "--yes").status == 5
    assert home.ok("delete", f"{name}:v1", "--yes", "-q").out == f"{name}:v1\n"
    assert home.run("show", f"{name}:v1").status == 3
    assert home.run("show", f"{name}:v2").status == 0


def test_a_repository_is_deleted_for_good(home: Home, name: str) -> None:
    home.ok("delete", name, "--yes")
    assert home.run("show", name).status == 3
    assert home.run("push", TINY / "adapters" / "queries-v1", "--base", "tiny", name).status in (3, 5)


def test_lists_are_filtered_and_followed_to_their_end(home: Home, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = name.partition("/")[0]
    home.ok("push", TINY / "adapters" / "logs", "--base", "tiny", f"{namespace}/logs")
    monkeypatch.setattr("lora_reg.calls.PAGE", 1)
    assert home.ok("list", f"{namespace}/*", "-q").out.split() == [f"{namespace}/logs", f"{namespace}/queries"]
    assert [item["number"] for item in home.json("history", name)["versions"]] == [2, 1]
    assert len(home.json("list", "--limit", "1")["items"]) == 1
    said = home.ok("list", f"{namespace}/nothing*")
    assert said.out == ""
    assert "No repository matches" in said.err


def test_lineage(home: Home, name: str) -> None:
    text = home.ok("lineage", f"{name}:v2").out
    assert "base: default/tiny:v1" in text
    graph = home.json("lineage", f"{name}:v2", "--format", "json")
    assert {edge["relation"] for edge in graph["edges"]} == {"base"}
    assert graph["root"] in graph["nodes"]
    dot = home.ok("lineage", f"{name}:v2", "--format", "dot").out
    assert dot.startswith("digraph lineage {\n")
    assert '[label="base"];' in dot


def test_delete_tells_what_it_frees_and_undelete_takes_it_back(home: Home, name: str) -> None:
    said = home.ok("delete", f"{name}:v1", "--yes")
    assert "freed after 24 hours" in said.out
    assert f"`lora-reg undelete {name}:v1` restores it" in said.out
    assert home.run("show", f"{name}:v1").status == 3
    assert home.ok("undelete", f"{name}:v1", "-q").out == f"{name}:v1\n"
    assert home.json("show", f"{name}:v1")["number"] == 1
    assert home.run("undelete", f"{name}:v1").status == 5
    assert home.run("delete", f"{name}:v1", "--yes", "--purge").status == 2
    assert home.run("delete", f"{name}:v1", "--yes", "--derived", "--reason", "x").status == 2
    assert home.run("delete", name, "--yes", "--purge", "--reason", "x").status == 2
    purged = home.json("delete", f"{name}:v1", "--yes", "--purge", "--reason", "holds a password")
    assert (purged["purged"], purged["frees"]["versions"]) == (True, 1)
    assert home.run("show", f"{name}:v1").status == 3


def test_a_retention_rule_is_shown_before_it_is_set(home: Home, name: str) -> None:
    shown = home.json("retention", name, "--keep-last", "1", "--dry-run")
    assert (shown["keep_last"], shown["would_delete"]) == (None, [1])
    assert home.run("retention", name, "--keep-last", "1").status == 2
    assert home.run("retention", name, "--keep-last", "1", "--off").status == 2
    assert "keep the last 1" in home.ok("retention", name, "--keep-last", "1", "--yes").out
    assert "v1" in home.ok("retention", name).out
    assert "keep every version" in home.ok("retention", name, "--off").out
