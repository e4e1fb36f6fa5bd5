from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.push import push, push_folder
from tests.support.service import InProcess, in_process
from tests.support.testbed import require_testbed

__all__ = ["testbed", "world"]

NOTES = random.Random(7).randbytes(12 * 1024 * 1024).hex().encode()
"""24 MiB: clients write to disk in pieces of 10 MiB, so less cannot be resumed."""


@dataclass(frozen=True)
class World:
    """A service that holds a base `default/tiny`, `hub/python` (tagged prod), and what tests push."""

    service: InProcess
    client: httpx.Client
    testbed: Path

    @property
    def hub(self) -> str:
        return self.service.url + "/hf"

    def push_series(self, name: str) -> list[dict[str, Any]]:
        """`hub/<name>` with v1 to v3; prod is v1 and candidate v2."""
        versions = []
        for number, tags in ((1, ["prod"]), (2, ["candidate"]), (3, [])):
            folder = self.testbed / "adapters" / "series-sql" / f"v{number}"
            answer = push_folder(self.client, "hub", name, "adapter", folder, base="default/tiny", tags=tags)
            assert answer.status_code == 201, answer.text
            versions.append(answer.json()["version"])
        return versions


@pytest.fixture(scope="session")
def testbed() -> Path:
    return require_testbed()


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory, testbed: Path) -> Iterator[World]:
    with (
        in_process(tmp_path_factory.mktemp("hub")) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        assert push_base(client, testbed).status_code == 201
        python = read(testbed / "adapters" / "lora-r8-qv-python")
        python["notes.txt"] = NOTES
        pushed = push(client, "hub", "python", "adapter", python, base="default/tiny", tags=["prod"])
        assert pushed.status_code == 201, pushed.text
        yield World(service, client, testbed)


def push_base(client: httpx.Client, testbed: Path) -> httpx.Response:
    aliases = ["lora-reg-fixture/tiny-llama-4m", "Some.Org/Tiny-Llama"]
    return push_folder(client, "default", "tiny", "base", testbed / "base", aliases=aliases)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
