"""Three generations of huggingface_hub write, unmodified, and the `hf` command."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.registry.hub.clients import VERSIONS, python_with, run
from tests.registry.hub.conftest import World
from tests.registry.hub.recording import RecordingProxy
from tests.registry.site import unique
from tests.support import node

OPTIMIZER = random.Random(3).randbytes(2 * 1024 * 1024)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_of_a_client_works(world: World, version: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(world.testbed / "adapters" / "lora-r8-qv-python", folder)
    long = random.Random(version).randbytes(1024 * 1024).hex().encode()
    (folder / "long.txt").write_bytes(long)
    (folder / "optimizer.pt").write_bytes(OPTIMIZER)
    repo, dataset = f"hub/{unique('client')}", f"hub/{unique('texts')}"
    arguments = {"repo": repo, "dataset": dataset, "folder": str(folder)}
    with RecordingProxy(urlsplit(world.hub).port or 0) as proxy:
        seen = run(python_with(version), "hub_write.py", arguments, endpoint=f"{proxy.url}/hf", home=tmp_path / "home")
        sent = bytes(proxy.sent)
    # Before 2 a card is checked at huggingface.co, whatever HF_ENDPOINT says.
    failed = {name for name, outcome in seen["calls"].items() if outcome != "ok"}
    assert failed == (set() if version.startswith("2") else {"card"}), seen["calls"]
    assert {"adapter_config.json", "adapter_model.safetensors", "long.txt", "README.md"} == set(seen["files"])
    assert OPTIMIZER not in sent
    assert b"xet-write-token" not in sent
    # 0.36 sends what is long by LFS; later ones would send it by Xet, and so are told to send it in the commit.
    assert (b"/info/lfs/objects/batch" in sent) is version.startswith("0.")
    assert (long in sent) is version.startswith("0.")


def test_the_command_uploads_a_folder(world: World, tmp_path: Path) -> None:
    repo = f"hub/{unique('command')}"
    command = [str(Path(sys.executable).parent / "hf"), "upload", repo]
    folder = world.testbed / "adapters" / "lora-r8-qv-python"
    done = subprocess.run(
        [*command, str(folder), "."],
        env={"HF_ENDPOINT": world.hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = world.client.get(f"/api/v1/repositories/{repo}/versions/v1").json()
    assert (found["kind"], found["meta"]) == ("adapter", {"source": "hub"})


def test_a_javascript_client_writes_what_is_long_by_lfs_in_parts(world: World) -> None:
    if reason := node.missing():
        pytest.skip(reason)
    packages = node.ensure_packages("hub-js", ["@huggingface/hub@2.17.5"])
    name = f"hub/{unique('js')}"
    folder = world.testbed / "adapters" / "lora-r8-qv-python"
    arguments = {"packages": str(packages), "hubUrl": world.hub, "folder": str(folder), "name": name}
    script = Path(__file__).parent / "hub_write.mjs"
    command = ["node", str(script), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        **dict.fromkeys(["uploadFile", "uploadFiles", "deleteFile", "createBranch", "deleteBranch"], "ok"),
        **dict.fromkeys(["createRepo", "modelInfo"], name),
    }
    numbers = [item["number"] for item in world.client.get(f"/api/v1/repositories/{name}/versions").json()["items"]]
    assert numbers == [2, 1]
