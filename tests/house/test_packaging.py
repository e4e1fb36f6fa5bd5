"""The wheel: its version, license and types, and what the base install does without the packages of the extras."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from lora_contract import __version__
from tests.support.command import ROOT, TINY

PACKAGES = ("lora_contract", "lora_reg", "lora_registry", "lora_kernels")
HEAVY = ("numpy", "torch", "transformers", "peft", "sqlalchemy", "sqlmodel", "litestar", "uvicorn", "boto3", "dbos")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, by the build backend itself: no isolated environment, no network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("lora_reg-*.whl")
    return made


def run(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the unpacked wheel in an interpreter in which the packages of the extras are missing."""
    program = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); sys.modules.update(dict.fromkeys({HEAVY}))\n"
        f"import {module} as m; assert m.__file__.startswith({str(folder)!r}), m.__file__\n"
        f"sys.argv = ['program', *{arguments!r}]; m.main()"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("LORA_REG_", "PYTHONPATH"))}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=clean, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_what_an_installation_needs(wheel: Path) -> None:
    assert wheel.name.startswith(f"lora_reg-{__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = email.message_from_bytes(archive.read(metadata))
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert any(name.startswith("lora_registry/alembic/versions/") for name in names)
    assert {name.split("/")[0] for name in names} == {*PACKAGES, metadata.split("/")[0]}
    assert described["License-Expression"] == "Apache-2.0"
    assert f"{metadata.rpartition('/')[0]}/licenses/LICENSE" in names
    assert {"server", "worker", "sign", "plot", "harness"} <= set(described.get_all("Provides-Extra", []))


def test_the_client_alone_works_without_the_extras(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    version = run(tmp_path, "lora_reg.cli.main", "--version")
    assert (version.returncode, version.stdout) == (0, f"lora-reg {__version__}\n")
    unreachable = run(tmp_path, "lora_reg.cli.main", "list", "--server", "http://127.0.0.1:9")
    assert unreachable.returncode == 10, unreachable.stderr
    base, adapter = str(TINY / "base"), str(TINY / "adapters/queries-v1")
    merge = run(tmp_path, "lora_reg.cli.main", "merge", "--local", "--base-dir", base, adapter, "-o", "out")
    assert merge.returncode == 2, merge.stderr
    assert "numpy, which is not installed" in " ".join(merge.stderr.split())
    assert "Traceback" not in merge.stderr
    serve = run(tmp_path, "lora_registry.cli", "serve", "--data", "data")
    assert serve.returncode == 2, serve.stderr
    assert "which is not installed" in serve.stderr
    assert "Traceback" not in serve.stderr


def test_each_hook_of_pre_commit_is_a_tool_of_the_environment() -> None:
    """Local hooks alone: a commit downloads nothing."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert [source["repo"] for source in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    checks = (ROOT / "Makefile").read_text("utf-8").partition("\ncheck:")[2].partition("\n\n")[0]
    for hook in hooks:
        program = hook["entry"].split()[0]
        assert hook["language"] == "system"
        assert f"$(BIN)/{program.removeprefix('.venv/bin/')}" in checks


def test_dist_builds_with_tools_of_the_environment() -> None:
    """`make dist` needs no network: build and the backend are among the development dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = [item.partition(">")[0] for item in project["project"]["optional-dependencies"]["dev"]]
    assert {"build", "hatchling", "pre-commit"} <= set(wanted)
