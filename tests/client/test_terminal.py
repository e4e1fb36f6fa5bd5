"""What a person sees: lines that break between words, colour, suggestions, short ids, the cache's commands."""

from __future__ import annotations

import io
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lora_contract.wire.jobs import JobView
from lora_contract.wire.repositories import Lineage, LineageEdge, VersionRef
from lora_reg import waiting
from lora_reg.cli.output import Output
from lora_reg.formatting import jobs
from lora_reg.formatting.lineage import how, tree
from lora_reg.formatting.text import Line, Word, age, fields, indented, short_id, table, wrap
from tests.support.command import TINY, Home, fresh

DIGEST = "sha256:" + "a1" * 32


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def shown(lines: list[str], width: int = 40) -> list[str]:
    return ["".join(words) for line in lines for words in wrap(line, width)]


def test_lines_break_between_words_under_their_column() -> None:
    rows = table(("RULE", "FINDINGS"), [("quality", "the loss is higher than that of the base"), ("rank", "fine")])
    assert shown(rows) == [
        "RULE     FINDINGS",
        "quality  the loss is higher than that of",
        "         the base",
        "rank     fine",
    ]
    assert shown(fields([("digest", DIGEST)])) == ["  digest", f"    {DIGEST}"]
    assert shown([Line("hint: ", "a b" * 4)], 10) == ["hint: a ba", "ba ba b"]
    assert shown(["no-room-for-this-word"], 8) == ["no-room-for-this-word"]
    assert shown(["short"]) == ["short"]


def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost() -> None:
    text = " ".join("x" * (1 + number * 7 % 19) for number in range(60))
    for width in (24, 40, 80, 120):
        lines = shown([Line(text, hang=9)], width)
        assert max(map(len, lines)) <= width
        assert " ".join(" ".join(lines).split()) == text


def test_colour_on_a_terminal_unless_it_is_not_wanted(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(Word("failed", "bad"), "  \x1b[32mevil")
    Output("human", stdout=terminal).line(line)
    assert terminal.getvalue() == "\x1b[31mfailed\x1b[0m  \\x1b[32mevil\n"
    for variable, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patched:
            patched.setenv(variable, value)
            plain = Terminal()
            Output("human", stdout=plain).line(line)
            assert plain.getvalue() == "failed  \\x1b[32mevil\n"
    file = io.StringIO()
    Output("human", stdout=file).line(Line(*["word "] * 30, hang=4))
    assert file.getvalue().count("\n") == 1  # what is piped is never wrapped


def test_tones_survive_indenting() -> None:
    (line,) = indented([Line(Word("ok", "good"))])
    assert [(word, word.tone) for word in line.words] == [("  ", None), ("ok", "good")]  # type: ignore[attr-defined]


def test_short_ids_are_prefixes() -> None:
    for job_id, short in (
        (f"merge-{'ab' * 32}", "merge-abababababab"),
        (f"validate-12-{'0f' * 32}", "validate-12-0f0f0f0f0f0f"),
        (f"merge-{'ab' * 32}-2", f"merge-{'ab' * 32}-2"),
        ("diff-2-8", "diff-2-8"),
        ("nothing", "nothing"),
    ):
        assert short_id(job_id) == short
        assert job_id.startswith(short)


def test_ages() -> None:
    now = datetime(2026, 1, 3, 12, tzinfo=UTC)
    times = ("2026-01-03T11:59:55Z", "2026-01-03T11:57:00+00:00", "2026-01-03T10:00:00Z", "2025-12-30T12:00:00Z", "?")
    assert [age(text, now) for text in times] == ["5s", "3m", "2h", "4d", "?"]


def test_a_job_list_fits_80_columns() -> None:
    result = VersionRef(
        namespace="acme", name="query-writer-merged", kind="model", number=1, digest=DIGEST, created_at=""
    )
    views = [
        JobView(id=f"{kind}-{'ab' * 32}", kind=kind, state=state, queue="cpu", created_at="2026-01-01T00:00:00Z",
                updated_at="2026-01-01T00:00:00Z", title=f"{kind} acme/query-writer:v1 on a set with a long name",
                result=result if state == "done" else None)
        for kind, state in (("merge", "done"), ("validate", "running"), ("compose", "failed"))
    ]  # fmt: skip
    lines = jobs.jobs(views)
    assert lines[0].split() == ["STATE", "RESULT", "ID", "AGE"]
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[:3] == ["done", "acme/query-writer-merged:v1", "merge-abababababab"]


def ref(name: str) -> VersionRef:
    return VersionRef(namespace="ns", name=name, kind="adapter", number=1, digest=DIGEST, created_at="")


def test_the_lineage_shows_each_version_once() -> None:
    """A chain in which each version is composed of the two before it: a tree that repeats them has 2^n lines."""
    count = 24
    keys = [f"ns/a{number}:v1" for number in range(count)]
    edges = [
        LineageEdge(child=keys[n], parent=keys[n - back], relation="input") for n in range(2, count) for back in (1, 2)
    ]
    found = Lineage(root=keys[-1], nodes={key: ref(f"a{number}") for number, key in enumerate(keys)}, edges=edges)
    recipe = {"operation": "compose", "method": "ties", "parameters": {"density": 0.5, "rank": None},
              "inputs": [{"digest": "x", "weight": 0.7}, {"digest": "y", "weight": 0.3}]}  # fmt: skip
    lines = list(tree(found, {keys[-1]: recipe}))
    assert lines[0] == f"ns/a23:v1  {DIGEST[:19]}  adapter  compose: ties, weights 0.7 0.3, density=0.5"
    assert len(lines) == 2 + len(edges)
    assert sum("(shown above)" in line for line in lines) == len(edges) - (count - 1)


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ({"operation": "merge", "inputs": [{"weight": 1.0}], "dtype": "bfloat16"}, "merge: dtype=bfloat16"),
        ({"operation": "resize", "rank": 4, "keep_energy": None, "dtype": None}, "resize: rank=4"),
        ({"operation": "extract", "rank": None, "keep_energy": 0.9, "max_rank": None}, "extract: keep-energy=0.9"),
        ({"operation": "convert", "uniform_rank": False}, "convert"),
    ],
)
def test_recipes_in_one_line(recipe: dict[str, object], text: str) -> None:
    assert how(recipe) == text


def test_did_you_mean(home: Home) -> None:
    space = fresh()
    home.ok("push", TINY / "adapters" / "queries-v1", f"{space}/query-writer:prod", "--base", "tiny")
    for arguments, meant in (
        (("psh",), "push"),
        (("job", "lst"), "list"),
        (("show", f"{space}/query-writter"), f"{space}/query-writer"),
        (("pull", f"{space}/query-writer:prdo"), f"{space}/query-writer:prod"),
        (("show", f"{space}/query-writer:v7"), f"{space}/query-writer:v1"),
        (("merge", f"{space}/query-writer:canary", "--to", f"{space}/m"), f"{space}/query-writer:prod"),
        (("push", TINY / "adapters" / "logs", "--base", "tinny", f"{space}/logs"), "default/tiny"),
    ):
        said = home.run(*arguments)
        assert said.status in (2, 3)
        assert f"Did you mean {meant}" in said.err, said.err
    # A repository of the same name elsewhere is found, one that is spelled otherwise is not made up.
    assert f"Did you mean {space}/query-writer" in home.run("show", "query-writer").err
    assert "Did you mean" not in home.run("show", f"{fresh()}/nothing-like-it").err


def test_a_job_that_no_worker_takes_is_noticed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service of these tests has no worker."""
    monkeypatch.setattr(waiting, "UNCLAIMED_SECONDS", 0.5)
    name = f"{fresh()}/queries"
    home.ok("push", TINY / "adapters" / "queries-v1", "--base", "tiny", name)
    said = home.run("merge", name, "--to", f"{name}-merged", "--timeout", "2")
    assert said.status == 8
    assert said.err.count("`lora-registry worker --queues cpu`") == 1
    job = home.ok("merge", name, "--to", f"{name}-merged", "--detach", "-q").out.strip()
    assert "lora-registry worker" in home.ok("job", "show", job).out


def test_the_cache_is_listed_and_emptied(home: Home) -> None:
    name = f"{fresh()}/queries"
    for number in (1, 2):
        home.ok("push", TINY / "adapters" / f"queries-v{number}", "--base", "tiny", name)
        home.ok("pull", f"{name}:v{number}")
    home.ok("tag", f"{name}:v1", "prod")
    home.ok("pull", f"{name}:prod")
    listed = home.json("cache", "list")
    assert listed["schema"] == "lora-reg/cache/1"
    first, second = sorted(listed["versions"], key=lambda version: version["selectors"], reverse=True)
    assert (first["selectors"], second["selectors"]) == (["v2"], ["prod", "v1"])
    assert listed["size"] == sum(path.stat().st_size for path in (home.cache / "blobs").rglob("*") if path.is_file())
    assert f"{name}  {second['digest'][:19]}" in home.ok("cache", "list").out
    removed = home.json("cache", "rm", f"{name}:prod")
    assert [version["digest"] for version in removed["removed"]] == [second["digest"]]
    assert home.run("pull", f"{name}:v1", "--offline").status == 3
    assert home.ok("pull", f"{name}:v2", "--offline")
    assert home.json("cache", "list")["size"] == listed["size"] - removed["freed"]
    assert home.run("cache", "rm").status == 2
    assert home.run("cache", "rm", f"{name}:prod").status == 3
    home.ok("cache", "rm", "--all")
    assert home.json("cache", "list")["versions"] == []
    assert [path for path in (home.cache / "blobs").rglob("*") if path.is_file()] == []
    home.ok("pull", f"{name}:v1")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion(home: Home, shell: str) -> None:
    script = home.ok("completion", shell).out
    assert "_LORA_REG_COMPLETE" in script
    done = subprocess.run(
        [sys.executable, "-c", "from lora_reg.cli.main import main; main()"],
        env={
            **home.environment,
            "_LORA_REG_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": "lora-reg pol",
            "COMP_CWORD": "1" if shell == "zsh" else "pol",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "policy" in done.stdout
    assert home.run("completion", "tcsh").status == 2


def test_a_pull_into_a_folder_needs_no_writable_home(home: Home, tmp_path: Path) -> None:
    name = f"{fresh()}/queries"
    home.ok("push", TINY / "adapters" / "queries-v1", "--base", "tiny", name)
    (tmp_path / "file").write_text("x")
    readonly = home.folder / "readonly"
    readonly.mkdir(parents=True)
    said = subprocess.run(
        [sys.executable, "-m", "lora_reg.cli.main", "pull", name, "-o", str(tmp_path / "out")],
        env={**home.environment, "LORA_REG_CACHE": "/proc/no/cache", "HOME": "/proc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stderr == "warning: the cache /proc/no/cache is not writable; continuing without it.\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (TINY / "adapters" / "queries-v1").iterdir()
    )
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
