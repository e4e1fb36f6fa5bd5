"""The whole service on PostgreSQL and an S3 store, with workers of its own: nothing but settings differ.

The command line drives it; bytes go between client and store by presigned URLs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_contract.digest import Digest
from tests.support import service
from tests.support.s3 import BUCKET, S3Server

TINY = service.ROOT / "examples" / "tiny"


@contextmanager
def worker(environment: Mapping[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lora_registry.cli", "worker"], env=dict(environment), stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def command_line(environment: Mapping[str, str]) -> Callable[..., dict[str, object]]:
    """`lora-reg … --json` in a process of its own; its document."""

    def run(*arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-m", "lora_reg.cli.main", *arguments, "--json"],
            env=dict(environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        document: dict[str, object] = json.loads(done.stdout)
        return document

    return run


@pytest.mark.parametrize(("store", "tls"), [("ministack", True), ("swift", False)])
def test_push_merge_pull_on_postgresql_and_s3(
    store: str, tls: bool, request: pytest.FixtureRequest, postgres_url: str, tmp_path: Path
) -> None:
    server: S3Server = request.getfixturevalue(f"{store}_server")
    prefix = f"e2e-{os.getpid()}"
    extra = {
        "LORA_REG_DATABASE_URL": postgres_url,
        "LORA_REG_STORAGE_URL": f"s3://{BUCKET}/{prefix}",
        "LORA_REG_S3_ENDPOINT_URL": server.https if tls else server.http,
        "LORA_REG_S3_REGION": "us-east-1",
        "LORA_REG_AUTH": "token",
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
    }
    if tls:
        extra |= {"LORA_REG_S3_CA_BUNDLE": str(server.ca)}
    environment = service.environment(tmp_path / "data", extra)
    admin = [sys.executable, "-m", "lora_registry.cli"]
    subprocess.run([*admin, "migrate"], env=environment, check=True)
    created = subprocess.run(
        [*admin, "token", "create", "ci", "--role", "writer"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    with (
        service.running(tmp_path / "data", extra=extra) as running,
        worker(environment, tmp_path / "worker.log"),
    ):
        client_environment = {
            **environment,
            "LORA_REG_SERVER": running.url,
            "LORA_REG_TOKEN": created.stdout.strip(),
            "LORA_REG_CACHE": str(tmp_path / "cache"),
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
        }
        if tls:
            client_environment["SSL_CERT_FILE"] = str(server.ca)
        run = command_line(client_environment)
        run("base", "add", "tiny", str(TINY / "base"), "--alias", "lora-reg-examples/tiny-llama")
        pushed = run("push", str(TINY / "adapters/logs"), "--base", "tiny", "acme/logs", "--tag", "prod")
        assert pushed["created"] is True
        run("merge", "acme/logs:prod", "--to", "acme/merged")
        run("resize", "acme/logs:prod", "--rank", "4", "--to", "acme/small")
        run("extract", "acme/merged", "--base", "tiny", "--rank", "4", "--to", "acme/extracted", "--tag", "prod")
        run("pull", "acme/logs:prod", "-o", str(tmp_path / "out"))
        for file in sorted((TINY / "adapters/logs").iterdir()):
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
        run("pull", "acme/merged", "-o", str(tmp_path / "merged"))
        assert (tmp_path / "merged" / "model.safetensors.index.json").exists()
        local = ["resize", "--local", str(TINY / "adapters/logs"), "--rank", "4", "-o", str(tmp_path / "here")]
        assert len(run(*local)["report"]["modules"]) == 28  # type: ignore[index]
        for ref, folder in (("acme/small", "small"), ("acme/extracted:prod", "extracted")):
            run("pull", ref, "-o", str(tmp_path / folder))
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
            assert (tmp_path / "extracted" / name).exists()
        parents = run("show", "acme/extracted:prod")["parents"]
        assert [parent["name"] for parent in parents] == ["merged"]  # type: ignore[attr-defined]
    blobs = server.store(prefix=prefix, tls=tls)
    stored = dict(blobs.list())
    weights = Digest.of((TINY / "adapters/logs/adapter_model.safetensors").read_bytes())
    assert stored[weights] == (TINY / "adapters/logs/adapter_model.safetensors").stat().st_size
    assert "http" not in running.log.read_text().replace(running.url, ""), "a presigned URL was logged"
