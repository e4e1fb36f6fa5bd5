"""extract and resize by the command line: what is refused, what is told, by a job and on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_reg.formatting import losses
from tests.support.command import TINY, Home, fresh

LOGS = TINY / "adapters" / "logs"


pytestmark = pytest.mark.worker


@pytest.fixture
def name(home: Home) -> str:
    name = f"{fresh()}/logs"
    home.ok("push", LOGS, "--base", "tiny", name)
    return name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resize", "a/b", "--to", "a/c"], "one of --rank R, --keep-energy X and --plain"),
        (["resize", "a/b", "--rank", "2", "--plain", "--to", "a/c"], "one of --rank R"),
        (["resize", "a/b", "--rank", "2", "--uniform-rank", "--to", "a/c"], "--uniform-rank needs --plain"),
        (["resize", "a/b", "--rank", "2"], "--to REF"),
        (["resize", "a/b", "--rank", "2", "--to", "a/c:v3"], "the server assigns version numbers"),
        (["resize", "a/b", "--rank", "2", "--to", "a/c", "-o", "x"], "--output cannot be used with a job"),
        (["resize", "x", "--rank", "2", "--local"], "--local needs -o DIR"),
        (["resize", "x", "--rank", "2", "--local", "-o", "y", "--tag", "t"], "--tag cannot be used with --local"),
        (["resize", "nowhere", "--rank", "2", "--local", "-o", "y"], "There is no folder 'nowhere'"),
        (["compose", "a/b", "--method", "magic", "--to", "a/c"], "magic"),
        (["compose", "a/b", "--density", "0.5", "--to", "a/c"], "has no parameter 'density'"),
        (["compose", "a/b", "--method", "ties", "--density", "2", "--to", "a/c"], "density"),
        (["compose", "a/b", "--seed", "1", "--to", "a/c"], "--seed has no effect on svd"),
        (["compose", "a/b"], "--to REF"),
        (["compose", "nowhere", "--local", "-o", "y"], "There is no folder 'nowhere'"),
        (["resize", "x", "--rank", "2", "--to", "y", "--device", "auto"], "--device cannot be used with a job"),
        (["resize", "x", "--plain", "--device", "auto", "--local", "-o", "y"], "--device cannot be used with --plain"),
        (["extract", "a/b", "--base", "c", "--to", "a/c"], "either --rank R or --keep-energy X"),
        (["extract", "a/b", "--base", "c", "--rank", "1", "--keep-energy", "0.5", "--to", "a/c"], "either --rank R"),
        (["extract", "a/b", "--base", "c", "--rank", "1", "--max-rank", "2", "--to", "a/c"], "--max-rank needs"),
        (["extract", "a/b", "--rank", "1", "--to", "a/c"], "--base"),
        (["extract", str(TINY / "base"), "--base", "c", "--rank", "1", "--to", "a/c"], "is a folder"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(home: Home, arguments: list[str], said: str) -> None:
    refused = home.run(*arguments)
    assert refused.status == 2, refused.err
    assert said in refused.err


def test_a_resize_tells_the_worst_modules_and_the_next_step(home: Home, name: str) -> None:
    done = home.ok("resize", name, "--rank", "2", "--to", f"{name}-small:candidate")
    lines = done.out.splitlines()
    assert lines[0].startswith(f"done  {name}-small:v1  sha256:")
    assert "28 modules, " in lines[1]
    assert lines[2].split() == ["ERROR", "RANK", "MODULE"]
    rows = [line.split() for line in lines[3:-1]]
    assert len(rows) == losses.WORST
    assert {rank for _, rank, _ in rows} == {"2"}
    assert [float(error) for error, *_ in rows] == sorted((float(error) for error, *_ in rows), reverse=True)
    assert "and 20 modules" in lines[-1]
    assert f"next: lora-reg pull {name}-small:v1 -o DIR" in done.err
    assert home.ok("resize", name, "--rank", "2", "--to", f"{name}-small", "-q").out == f"{name}-small:v1\n"
    shown = home.json("show", f"{name}-small:candidate")
    assert (shown["facts"]["max_rank"], shown["recipe"]["operation"]) == (2, "resize")


def test_the_methods_are_listed_without_a_registry(home: Home) -> None:
    known = home.json("compose", "--methods")
    assert known["schema"] == "lora-reg/methods/1"
    names = [method["name"] for method in known["methods"]]
    assert names == home.ok("compose", "--methods", "-q").out.split()
    told = home.ok("compose", "--methods").out
    assert {line.split()[0] for line in told.splitlines() if line and line[0] != " "} == set(names)
    assert "--density" in told
    shown = home.ok("compose", "--help").out
    assert "--majority-sign-method [total|frequency]" in shown


def test_a_composition_by_a_job_and_on_this_machine(home: Home, name: str, tmp_path: Path) -> None:
    queries = TINY / "adapters" / "queries-v1"
    home.ok("push", queries, "--base", "tiny", f"{name}-queries")
    options = ["--method", "dare_linear", "--density", "0.7", "--seed", "5"]
    done = home.ok("compose", f"{name}=0.5", f"{name}-queries=-0.25", *options, "--to", f"{name}-both")
    assert done.out.splitlines()[0].startswith(f"done  {name}-both:v1  sha256:")
    home.ok("pull", f"{name}-both", "-o", tmp_path / "by-job")
    home.ok("compose", "--local", f"{LOGS}=0.5", f"{queries}=-0.25", *options, "-o", tmp_path / "here")
    for path in sorted((tmp_path / "here").iterdir()):
        assert path.read_bytes() == (tmp_path / "by-job" / path.name).read_bytes(), path.name
    recipe = home.json("show", f"{name}-both")["recipe"]
    assert (recipe["method"], recipe["seed"], recipe["parameters"]) == ("dare_linear", 5, {"density": 0.7})


def test_an_extraction_detached(home: Home, name: str) -> None:
    home.ok("merge", name, "--to", f"{name}-merged")
    job = home.ok(
        "extract", f"{name}-merged", "--base", "tiny", "--keep-energy", "0.5", "--max-rank", "4", "--target", "q_proj",
        "--to", f"{name}-extracted", "--detach", "-q",
    ).out.strip()  # fmt: skip
    assert job.startswith("extract-")
    waited = home.json("job", "wait", job)
    assert waited["items"][0]["result"]["name"] == "logs-extracted"
    shown = home.json("show", f"{name}-extracted")
    assert shown["facts"]["targets"] == {"q_proj": 4}
    assert shown["recipe"]["base_name"] == "default/tiny"


def test_on_this_machine(home: Home, tmp_path: Path) -> None:
    said = home.json("resize", "--local", LOGS, "--plain", "-o", tmp_path / "plain")
    assert said["schema"] == "lora-reg/convert-local/1"
    assert said["output"] == str(tmp_path / "plain")
    assert home.ok("resize", "--local", LOGS, "--rank", "1", "-o", tmp_path / "one", "-q").out == f"{tmp_path}/one\n"
    chosen = home.json("resize", "--local", LOGS, "--rank", "1", "--device", "auto", "-o", tmp_path / "auto")
    assert chosen["report"]["execution"]["device"] == "cpu"
    refused = home.run("resize", "--local", LOGS, "--rank", "1", "--device", "cuda", "-o", tmp_path / "cuda")
    assert refused.status == 6 and "a resize decomposes factors alone" in refused.err
    again = home.run("resize", "--local", LOGS, "--rank", "1", "-o", tmp_path / "one")
    assert again.status == 5
    assert (
        home.run(
            "extract", "--local", TINY / "base", "--base", TINY / "base", "--rank", "1", "-o", tmp_path / "x"
        ).status
        != 0
    )


def test_errors_are_read_from_what_the_kernels_tell() -> None:
    body = {
        "kept_energy": 0.75,
        "modules": [
            {"module": "a", "rank": 4, "kept_energy": 0.96},
            {"module": "b", "rank": 2, "relative_error": 0.5},
            {"module": "c", "rank": 2, "kept_energy": 1.0000001},
        ],
    }
    assert [" ".join(line.split()) for line in losses.lines(body)] == [
        "3 modules, 75.0000% of the energy kept",
        "ERROR RANK MODULE",
        "5.00e-01 2 b",
        "2.00e-01 4 a",
        "0.00e+00 2 c",
    ]
    assert losses.lines({"kept": None, "modules": [{"module": "a", "rank": 4, "kept": None}]}) == ["  1 module"]
