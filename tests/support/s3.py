"""Real S3 servers: ministack (checks presigned signatures, expiry and digests) and OpenStack Swift with s3api (a store
that people run: no stored checksums, no atomic conditional puts). Each in an environment of its own, started when the
first test asks for it, over http and, through a TLS front of ours, over https.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import boto3.session
import httpx
import pytest
from botocore.config import Config

from lora_registry.blobs.s3 import S3Store
from lora_registry.blobs.s3_client import make_client
from lora_registry.blobs.s3_settings import S3Settings
from tests.support.envs import ensure_env
from tests.support.processes import free_ports, start, stop, wait_until
from tests.support.swift import RINGS, write_configuration
from tests.support.tls import tls_front

MINISTACK: Final = ["ministack==1.5.33"]
SWIFT: Final = ["swift==2.38.3"]
BUCKET: Final = "loras"
REGION: Final = "us-east-1"


class Programs:
    """The processes of a server, which may be killed, and started again on the same data."""

    def __init__(self, commands: Sequence[list[str]], folder: Path, environment: Mapping[str, str], ready: list[str]):
        self._commands = commands
        self._folder = folder
        self._environment = environment
        self._ready = ready
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        log = self._folder / "log"
        for command in self._commands:
            self._running.append(start(command, log=log, environment=self._environment, folder=self._folder))
        for url in self._ready:
            wait_until(lambda url=url: _answers(url), what=url, log=log)  # type: ignore[misc]

    def kill(self) -> None:
        """SIGKILL all of them."""
        for process in self._running:
            stop(process)
        self._running.clear()


@dataclass(frozen=True)
class S3Server:
    """A server and how to reach it; the bucket BUCKET exists. `ca` is the file to trust, for https."""

    name: str
    http: str
    https: str
    ca: Path
    access_key: str
    secret_key: str
    programs: Programs = field(compare=False, repr=False)

    def settings(self, *, tls: bool = False, **changes: Any) -> S3Settings:
        values: dict[str, Any] = {
            "endpoint_url": self.https if tls else self.http,
            "region": REGION,
            "path_style": True,
            "verify": str(self.ca) if tls else True,
            "attempts": 2,
        }
        return S3Settings(**(values | changes))

    def client(self, settings: S3Settings) -> Any:
        """As the product makes it, with the credentials in the session rather than in the environment."""
        return _client(self, settings)

    @contextmanager
    def credentials(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", self.access_key)
            patch.setenv("AWS_SECRET_ACCESS_KEY", self.secret_key)
            yield

    def store(self, *, prefix: str, tls: bool = False, **changes: Any) -> S3Store:
        settings = self.settings(tls=tls, **changes)
        return S3Store(bucket=BUCKET, prefix=prefix, client=self.client(settings), settings=settings)


@cache
def _client(server: S3Server, settings: S3Settings) -> Any:
    with server.credentials():
        client = make_client(settings)
        # boto looks credentials up when it signs for the first time; have it done while they are set.
        client.generate_presigned_url("list_buckets")
    return client


@contextmanager
def ministack(folder: Path) -> Iterator[S3Server]:
    """Start it with its data under `folder`. It accepts a wrong secret in header authentication: do not test that here."""
    program = ensure_env("ministack", MINISTACK) / "ministack"
    (port,) = free_ports(1)
    environment = {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3",
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(folder / "data"),
        "AUTH": "true",
        "LOG_LEVEL": "WARNING",
    }
    (folder / "data").mkdir(parents=True)
    url = f"http://127.0.0.1:{port}"
    with _server(
        "ministack", url, Programs([[str(program)]], folder, environment, [url]), folder, "test", "test"
    ) as s3:
        yield s3


@contextmanager
def swift(folder: Path) -> Iterator[S3Server]:
    """Start proxy, account, container and object server with their data under `folder`."""
    programs = ensure_env("swift", SWIFT)
    ports = dict(zip(("proxy", "container", "account", "object"), free_ports(4), strict=True))
    (folder / "srv" / "d1").mkdir(parents=True)
    configurations = write_configuration(folder, ports)
    subprocess.run([str(programs / "python"), "-c", RINGS, json.dumps(ports)], cwd=folder, check=True)
    url = f"http://127.0.0.1:{ports['proxy']}"
    commands = [[str(programs / f"swift-{kind}-server"), str(path)] for kind, path in configurations.items()]
    health = [f"http://127.0.0.1:{port}/healthcheck" for port in ports.values()]
    with _server("swift", url, Programs(commands, folder, {}, health), folder, "test:tester", "testing") as s3:
        yield s3


@contextmanager
def _server(
    name: str, url: str, programs: Programs, folder: Path, access_key: str, secret_key: str
) -> Iterator[S3Server]:
    try:
        programs.start()
        client = boto3.session.Session(aws_access_key_id=access_key, aws_secret_access_key=secret_key).client(
            "s3", endpoint_url=url, region_name=REGION, config=Config(s3={"addressing_style": "path"})
        )
        client.create_bucket(Bucket=BUCKET)
        with tls_front(target_port=int(url.rpartition(":")[2]), folder=folder) as front:
            https = f"https://127.0.0.1:{front.port}"
            yield S3Server(name, url, https, front.certificate, access_key, secret_key, programs)
    finally:
        programs.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.TransportError:
        return False
