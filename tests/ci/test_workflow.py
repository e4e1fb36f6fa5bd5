"""The script and the templates of docs/ci, run against a service as a pipeline would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_contract import __version__
from lora_contract.roles import Grant
from lora_registry import admin, settings
from tests.support import service
from tests.support.command import ALIAS, ROOT, TINY, Home
from tests.support.issuer import AUDIENCE, Issuer, actions, issuer, trust
from tests.support.issuer import github as github_claims
from tests.support.issuer import gitlab as gitlab_claims

CI = ROOT / "docs" / "ci"
SCRIPT = CI / "promote.sh"


@pytest.fixture(scope="module")
def made() -> Iterator[Issuer]:
    with issuer() as running:
        yield running


@pytest.fixture(scope="module")
def home(made: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """An administrator's machine. The registry trusts the main branches of a repository and of a project."""
    folder = tmp_path_factory.mktemp("ci")
    extra = {"LORA_REG_AUTH": "token"}
    with service.in_process(folder / "data", extra) as running, service.worker(running, folder / "worker.log"):
        rights = ("--grant", "writer:acme", "--issuer", made.url, "--ref", "main")
        ids = ("--repository-id", "74", "--owner-id", "65", "--workflow", "adapter.yml")
        trust(running, "gh", "--github", "acme/sql-writer", *ids, *rights)
        trust(running, "gl", "--gitlab", "acme/sql-writer", "--project-id", "20", "--namespace-id", "72", *rights)
        config = settings.load(running.environment)
        secret = folder / "token"
        secret.write_text(admin.create_token(config, name="root", grants=[Grant("*", "admin")]))
        user = Home(folder / "home", running.url)
        user.ok("login", running.url, "--token-file", secret)
        user.ok("namespace", "set", "default", "--visibility", "internal")
        user.ok("base", "add", "tiny", TINY / "base", "--alias", ALIAS)
        user.ok("dataset", "add", "acme/eval", TINY / "data" / "queries_eval.jsonl")
        yield user


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with `lora-reg` as an installed package gives it, from this checkout."""
    program = tmp_path / "bin" / "lora-reg"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lora_reg.cli.main "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def pipeline(home: Home, path: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = {"BASE": "tiny", "REPOSITORY": "acme/queries", "DATA": "acme/eval", **variables}
    return subprocess.run(
        [str(SCRIPT)],
        env={**home.environment, "PATH": path, **given},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def adapter(number: int) -> str:
    return str(TINY / "adapters" / f"queries-v{number}")


def test_a_series_goes_through_the_pipeline(home: Home, path: str, tmp_path: Path) -> None:
    gated = pipeline(home, path, ADAPTER=adapter(1), GITHUB_SHA="abc123")
    assert gated.returncode == 0, gated.stderr
    assert "acme/queries:v1 may become prod: On acme/eval it is better than the base" in gated.stdout
    assert home.run("show", "acme/queries:prod").status == 3
    assert home.json("show", "acme/queries:v1")["meta"] == {"commit": "abc123"}
    promoted = pipeline(home, path, ADAPTER=adapter(1), PROMOTE="yes")
    assert promoted.returncode == 0, promoted.stderr
    summary = tmp_path / "summary.md"
    better = pipeline(home, path, ADAPTER=adapter(2), PROMOTE="yes", FORMAT="github", GITHUB_STEP_SUMMARY=str(summary))
    assert better.returncode == 0, better.stderr
    assert "::notice title=gate for prod::acme/queries:v2 may become prod" in better.stdout
    assert "### acme/queries:v2 may become prod" in summary.read_text()
    report = tmp_path / "gate.xml"
    worse = pipeline(home, path, ADAPTER=adapter(3), PROMOTE="yes", FORMAT="junit", REPORT=str(report))
    assert worse.returncode == 6, worse.stderr
    suite = ET.parse(report).getroot().find("testsuite")
    assert suite is not None
    failures = [case.attrib["name"] for case in suite.iter("testcase") if case.find("failure") is not None]
    assert sorted(name.rpartition(":")[2] for name in failures) == ["base", "holder"]
    assert suite.attrib["failures"] == "2"
    assert home.json("show", "acme/queries:prod")["number"] == 2
    moves = home.json("history", "acme/queries:prod")["moves"]
    assert [move["to_number"] for move in moves] == [2, 1]
    refused = pipeline(home, path, ADAPTER=adapter(3), FORMAT="github")
    assert refused.returncode == 6
    assert "::error title=quality%3Aacme/eval%3Aholder::On acme/eval it is worse than" in refused.stdout


def test_what_a_pipeline_gets_wrong_is_told(home: Home, path: str) -> None:
    assert "names the folder" in pipeline(home, path, BASE="tiny").stderr
    nowhere = pipeline(home, path, ADAPTER=adapter(1), LORA_REG_SERVER="http://127.0.0.1:9")
    assert nowhere.returncode == 10
    assert pipeline(home, path, ADAPTER=adapter(1), DATA="acme/none").returncode == 3


@pytest.mark.parametrize("template", ["github-action.yml", "gitlab-ci.yml"])
def test_the_templates_call_the_script_with_what_it_reads(
    home: Home, made: Issuer, path: str, template: str, tmp_path: Path
) -> None:
    """Their variables, but for what stands for the reader's own names, through the script, on a machine without a
    secret: the job is let in by its identity token."""
    document = yaml.safe_load((CI / template).read_text())
    command, variables = github(document) if template.startswith("github") else gitlab(document)
    assert command == "ci/promote.sh"
    known = {line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#   ")}
    known |= {word.strip("#, ") for line in SCRIPT.read_text().splitlines()[:10] for word in line.split()}
    assert variables.keys() <= known
    repository = f"acme/{template.partition('.')[0]}"
    own = {"ADAPTER": adapter(1), "BASE": "tiny", "REPOSITORY": repository, "DATA": "acme/eval"}
    given = {**variables, **own, "PROMOTE": "yes"}
    if "REPORT" in given:
        given["REPORT"] = str(tmp_path / given["REPORT"])
    given.pop("LORA_REG_SERVER", None)
    assert "secrets." not in (CI / template).read_text()
    runner = Home(tmp_path / "runner", home.server)
    if on_github := template.startswith("github"):
        assert document["permissions"]["id-token"] == "write"
    else:
        assert document["gate-adapter"]["id_tokens"] == {"LORA_REG_ID_TOKEN": {"aud": AUDIENCE}}
    nobody = pipeline(runner, path, **given)
    assert nobody.returncode == 4, nobody.stderr
    with actions(made, github_claims()) as environ:
        shown = environ if on_github else {"LORA_REG_ID_TOKEN": made.token(gitlab_claims())}
        done = pipeline(runner, path, **given, **shown)
    assert done.returncode == 0, done.stderr
    assert home.json("show", f"{repository}:prod")["author"] == (
        "main@fa1e0c2b7d9b#gh" if on_github else "main@714a629c0b40#gl"
    )
    assert not (tmp_path / "runner" / "config").exists()


@pytest.mark.parametrize("template", ["github-action.yml", "gitlab-ci.yml"])
def test_the_templates_install_the_wheel_that_dist_builds(template: str, tmp_path: Path) -> None:
    """No index has the package: the one `pip install` names a file, and a shell finds the wheel by it."""
    installs = re.findall(r"pip install (.*)$", (CI / template).read_text(), flags=re.MULTILINE)
    wheel = tmp_path / "ci" / f"lora_reg-{__version__}-py3-none-linux_x86_64.whl"
    wheel.parent.mkdir()
    wheel.touch()
    found = subprocess.run(["sh", "-c", f"echo {' '.join(installs)}"], cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.split() == [str(wheel.relative_to(tmp_path))]


def github(document: Any) -> tuple[str, dict[str, str]]:
    step = document["jobs"]["gate"]["steps"][-1]
    return step["run"], step["env"]


def gitlab(document: Any) -> tuple[str, dict[str, str]]:
    job = document["gate-adapter"]
    assert job["artifacts"]["reports"]["junit"] == job["variables"]["REPORT"]
    (command,) = job["script"]
    return command, job["variables"]
