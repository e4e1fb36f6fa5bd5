"""A push of long files that is cut, over a folder and over S3: nothing is sent twice but the parts in flight."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from lora_contract.digest import Digest
from tests.registry.site import until
from tests.support import service
from tests.support.adapters import make_base
from tests.support.command import Home
from tests.support.s3 import BUCKET, S3Server

PART = 5 * 2**20
NAME = "ns/long"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 28 MB in one file, which are six parts."""
    return make_base(tmp_path_factory.mktemp("base"), hidden=512, intermediate=1408, vocab=16384, layers=2, tied=True)


@pytest.fixture(params=["folder", "swift"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    settings = {"LORA_REG_UPLOAD_PART_BYTES": str(PART)}
    if request.param == "folder":
        return settings
    server: S3Server = request.getfixturevalue("swift_server")
    return settings | {
        "LORA_REG_STORAGE_URL": f"s3://{BUCKET}/long-{os.getpid()}-{random.getrandbits(32):x}",
        "LORA_REG_S3_ENDPOINT_URL": server.http,
        "LORA_REG_S3_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
    }


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def parts_stored(url: str, folder: Path) -> set[int]:
    """The parts of the weights that the registry has. A push of the same files finds its session."""
    files = [
        {"path": path.name, "size": path.stat().st_size, "digest": str(Digest.of(path.read_bytes()))}
        for path in sorted(folder.iterdir())
    ]
    request = {"namespace": "ns", "name": "long", "kind": "base", "files": files}
    session = httpx.post(f"{url}/api/v1/uploads", json=request).json()
    weights = next(file["digest"] for file in files if file["path"] == WEIGHTS)
    answer = httpx.get(f"{url}/api/v1/uploads/{session['id']}/blobs/{weights}/parts").json()
    assert answer["part_size"] == PART
    return set(answer["numbers"])


def test_a_push_goes_on_after_both_sides_were_killed(base: Path, storage: dict[str, str], tmp_path: Path) -> None:
    data, home = tmp_path / "data", tmp_path / "home"
    weights = (base / WEIGHTS).stat().st_size
    with service.running(data, extra=storage | {"LORA_REG_FAULT": "upload.parts:6@stop"}) as registry:
        first = subprocess.Popen(
            [sys.executable, "-m", "lora_reg.cli.main", "base", "add", NAME, str(base), "--quiet"],
            env=Home(home, registry.url).environment,
        )
        until(lambda: is_stopped(registry.process.pid))
        first.send_signal(signal.SIGKILL)
        first.wait()
        registry.kill()
    with service.running(data, extra=storage) as registry:
        there = parts_stored(registry.url, base)
        # The sixth was asked for, so of four at a time two were through.
        assert 2 <= len(there) <= 5
        missing = sum(min(PART, weights - at) for n, at in enumerate(range(0, weights, PART), 1) if n not in there)
        user = Home(home, registry.url)
        again = user.json("base", "add", NAME, base)
        assert again["created"]
        small = (base / "config.json").stat().st_size
        assert missing <= again["sent"] <= missing + small
        user.ok("pull", NAME, "-o", tmp_path / "out")
        assert (tmp_path / "out" / WEIGHTS).read_bytes() == (base / WEIGHTS).read_bytes()
        if "LORA_REG_STORAGE_URL" not in storage:
            assert list((data / "blobs" / "uploads").rglob("*")) == []
