"""The README's commands, run as they are written, by somebody who has read nothing else."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import httpx

from tests.support import service
from tests.support.processes import wait_until
from tests.support.service import PYTHONPATH, ROOT

README = (ROOT / "README.md").read_text("utf-8")
FIRST_STEPS = README.partition("## First steps")[2].partition("\n## ")[0]
ADAPTERS = README.partition("## From adapters to adapters")[2].partition("\n## ")[0]
MERGING = README.partition("## Merging")[2].partition("\n## ")[0]
VALIDATING = README.partition("## Validating")[2].partition("\n## ")[0].replace("\\\n", "")
GATES = README.partition("## Gates")[2].partition("\n## ")[0]
COMMANDS, FURTHER, LOCAL, JUDGED, GATED = (
    re.findall(r"^    (lora-reg .*)$", text, flags=re.MULTILINE)
    for text in (FIRST_STEPS, ADAPTERS, MERGING, VALIDATING, GATES)
)
PYTHON = textwrap.dedent(README.partition("## In Python\n")[2].partition("\n[")[0])
SCREEN = README.partition("\n## ")[0]
SHOWN = re.findall(r"^```console\n\$ (lora-reg .*)\n((?:.*\n)*?)```$", SCREEN, flags=re.MULTILINE)
SNIPPET = FIRST_STEPS.partition("    HF_ENDPOINT=")[2].partition("\n\n")[0].replace("\n    ", "\n")


def test_the_newcomers_commands(tmp_path: Path) -> None:
    assert [line.split()[1] for line in COMMANDS] == ["base", "push", "tag", "merge", "pull"]
    assert [line.split()[1] for line in FURTHER] == ["push", "compose", "resize", "resize", "extract", "resize"]
    assert [line.split()[1] for line in LOCAL] == ["merge", "merge"]
    assert [line.split()[1] for line in JUDGED] == ["validate"]
    assert [line.split()[1] for line in GATED] == ["dataset", "gate", "push", "promote", "diff", "policy", "policy"]
    assert re.search(r"^    lora-registry serve$", FIRST_STEPS, flags=re.MULTILINE)
    for part in ("base", "adapters", "broken", "data"):
        shutil.copytree(ROOT / "examples/tiny" / part, tmp_path / "examples/tiny" / part)
    shutil.copyfile(ROOT / "examples/policy.toml", tmp_path / "examples/policy.toml")
    # As a trainer leaves it.
    for name in ("training_args.bin", "optimizer.pt", "checkpoint-10/optimizer.pt", "runs/events.out.tfevents.1"):
        path = tmp_path / "examples/tiny/adapters/queries-v1" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"PK\x03\x04")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("LORA_REG_", "HF_"))}
    environment = {
        **clean,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}",
        "PYTHONPATH": PYTHONPATH,
        "LORA_REG_PORT": str(port),  # the default port may be taken on a machine that runs tests
        "LORA_REG_SERVER": f"http://127.0.0.1:{port}",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hub"),
    }
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            "exec lora-registry serve", shell=True, cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: _answers(port), what="the service", log=tmp_path / "serve.log")
        for command in (*COMMANDS, *FURTHER, *LOCAL, *JUDGED):
            done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        snippet = "HF_ENDPOINT=" + SNIPPET.replace("127.0.0.1:8750", f"127.0.0.1:{port}")
        done = subprocess.run(snippet, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        snapshot = Path(done.stdout.strip().splitlines()[-1])
        program = [sys.executable, "-c", PYTHON]
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        pulled, refusal = done.stdout.splitlines()
        assert (Path(pulled) / "adapter_config.json").is_file()
        assert refusal.startswith("rejected ")
        for command in GATED:  # they move the tag that was read just now
            done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        worse = "lora-reg push examples/tiny/adapters/queries-v3 --base tiny acme/query-writer"
        subprocess.run(worse, shell=True, cwd=tmp_path, env=environment, capture_output=True, check=True)
        assert [command.split()[1] for command, _ in SHOWN] == ["push", "gate"]
        for command, shown in SHOWN:
            done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 6, f"{command}\n{done.stdout}{done.stderr}"
            said = _without_numbers(done.stdout + done.stderr)
            for part in shown.split("…"):
                assert _without_numbers(part) in said, f"{command}\n{done.stdout}{done.stderr}"
    finally:
        process.terminate()
        process.wait(timeout=30)
    for file in (ROOT / "examples/tiny/adapters/queries-v1").iterdir():
        assert (tmp_path / "query-writer" / file.name).read_bytes() == file.read_bytes()
        assert (snapshot / file.name).read_bytes() == file.read_bytes()


def test_the_recipe_for_real_servers(tmp_path: Path) -> None:
    """As written, but for the addresses of PostgreSQL and S3: a token of one namespace pushes for a shared base."""
    section = README.partition("## On real servers")[2].partition("\n## ")[0]
    lines = re.findall(r"^    ((?:export|lora-reg\w*) .*)$", section, flags=re.MULTILINE)
    prepare = [line for line in lines if re.match(r"lora-registry (migrate|namespace|token)", line)]
    assert [line.split()[1:3] for line in prepare] == [
        ["migrate"], ["namespace", "set"], ["token", "create"], ["token", "create"]
    ]  # fmt: skip
    for part in ("base", "adapters"):
        shutil.copytree(ROOT / "examples/tiny" / part, tmp_path / "examples/tiny" / part)
    extra = dict(re.findall(r"(LORA_REG_AUTH)=(\S+)", " ".join(lines)))
    assert extra == {"LORA_REG_AUTH": "token"}
    environment = {
        **service.environment(tmp_path / "data", extra),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }

    def run(line: str) -> str:
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    for line in prepare:
        assert "hf_" not in run(line), "a secret is in its file alone"
    with service.in_process(tmp_path / "data", extra) as running:
        environment["LORA_REG_SERVER"] = running.url
        clients = [line for line in lines if re.match(r"lora-reg (base|push)", line)]
        assert len(clients) == 2
        for line in clients:
            run(line)
        assert "v1" in run("lora-reg show acme/query-writer --token-file ci.token")
        assert "acme" in run("lora-reg list --token-file ci.token")


def test_the_demo() -> None:
    done = subprocess.run([sys.executable, "examples/demo.py"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("$ lora-reg") == 10
    assert "would overwrite it in every process that shares the base" in done.stderr
    assert done.stdout.index("base alone") < done.stdout.index("To go on by hand")
    scratch = re.search(r"The data is in (\S+);", done.stdout)
    assert scratch
    shutil.rmtree(scratch[1])


def test_every_dependency_is_written_down() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    names = {re.split(r"[\[<>=~!; ]", item)[0].lower() for item in declared} - {"lora-reg"}
    written = (ROOT / "docs/dependencies.md").read_text("utf-8").lower()
    assert {name for name in names if name not in written} == set()


def _without_numbers(text: str) -> str:
    """What is said, however the lines break; the last digits of a loss differ from processor to processor."""
    return re.sub(r"\d+\.\d+", "N", "".join(text.split()))


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
