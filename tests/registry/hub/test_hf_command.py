"""The `hf` command as it is, and a base that was registered without its weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx

from tests.registry.hub.conftest import World
from tests.support.service import PYTHONPATH


def test_hf_downloads_and_verifies_every_file(world: World, tmp_path: Path) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": world.hub,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
    }

    def hf(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("hf")), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    got = hf("download", "hub/python", "--revision", "prod", "--include", "adapter_*")
    assert got.returncode == 0, got.stderr
    folder = next((tmp_path / "hub" / "models--hub--python" / "snapshots").iterdir())
    verify = ("cache", "verify", "hub/python", "--revision", folder.name)
    good = hf(*verify)
    assert good.returncode == 0, good.stdout + good.stderr
    # A small file too is checked by its sha256, not by an object id that we would have to invent.
    config = (folder / "adapter_config.json").resolve()
    config.write_bytes(config.read_bytes().replace(b'"r": 8', b'"r": 9'))
    bad = hf(*verify)
    assert bad.returncode != 0
    assert "adapter_config.json" in bad.stdout + bad.stderr


def test_a_base_without_weights_lists_what_can_be_downloaded(world: World, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "lora_reg.cli.main", "base", "add", "hub/thin", str(world.testbed / "base"),
        "--manifest-only",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "LORA_REG_SERVER": world.service.url, "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole = {path.name for path in (world.testbed / "base").iterdir()}
    listed = {item["path"] for item in httpx.get(f"{world.hub}/api/models/hub/thin/tree/main?recursive=true").json()}
    assert listed == {name for name in whole if not name.endswith(".safetensors")}
    answer = httpx.head(f"{world.hub}/hub/thin/resolve/main/model-00001-of-00002.safetensors")
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "EntryNotFound")
    assert "was registered without 'model-00001-of-00002.safetensors'" in answer.headers["x-error-message"]
