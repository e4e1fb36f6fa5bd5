"""The real huggingface_hub, three generations of it, against the real service."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.registry.hub.clients import VERSIONS, python_with, run
from tests.registry.hub.conftest import NOTES, World
from tests.registry.hub.recording import RecordingProxy

CUT_AFTER = 14 * 1024 * 1024
BASES = ("default/tiny", "Some.Org/Tiny-Llama", "lora-reg-fixture/tiny-llama-4m")


class CuttingProxy(RecordingProxy):
    """Cuts the first download that is longer than any other."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.cut_down_after, self.cuts = CUT_AFTER, 1


@pytest.mark.parametrize("version", VERSIONS)
def test_a_day_of_a_client(world: World, version: str, tmp_path: Path) -> None:
    name = "sql-" + version.replace(".", "-")
    repo = f"hub/{name}"
    versions = world.push_series(name)
    commits = [item["commit"] for item in versions]
    files = [{file["path"]: file["digest"].removeprefix("sha256:") for file in item["files"]} for item in versions]
    sizes = [{file["path"]: file["size"] for file in item["files"]} for item in versions]
    snapshots = [{"commit": commit, "files": content} for commit, content in zip(commits, files, strict=True)]
    names = ["adapter_config.json", "adapter_model.safetensors"]

    with CuttingProxy(urlsplit(world.hub).port or 0) as proxy:
        arguments = {"repo": repo, "api": world.service.url, "resumed": "hub/python"}
        seen = run(python_with(version), "hub_session.py", arguments, endpoint=f"{proxy.url}/hf", home=tmp_path)
        requests = proxy.requests()
        cuts = proxy.cut_count

    assert seen["version"].startswith(version)
    assert (
        seen["by_tag"] == seen["warm"] == seen["by_number"] == seen["alias_tag"] == seen["alias_number"] == snapshots[0]
    )
    assert seen["by_main"] == seen["by_commit"] == snapshots[2]
    assert seen["one_file"] == files[1]["adapter_config.json"]
    assert sorted(seen["base"]["files"]) == [
        "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    warm = requests[requests.index("GET /hf/api/mark/warm") + 1 : requests.index("GET /hf/api/mark/warm-end")]
    assert warm == [f"GET /hf/api/models/{repo}/revision/prod"]

    assert seen["files"] == names
    assert seen["tree"] == {path: [sizes[2][path], files[2][path]] for path in names}
    assert seen["paths"] == ["adapter_config.json"]
    assert seen["info"] == {
        "id": repo,
        "sha": commits[1],
        "base": "default/tiny",
        "tags": ["adapter", "peft", *(f"base_model:{tag}{base}" for base in BASES for tag in ("", "adapter:"))],
        "siblings": {path: [sizes[1][path], files[1][path]] for path in names},
        "dated": True,
    }
    numbers = {f"v{number}": commit for number, commit in enumerate(commits, 1)}
    assert seen["refs"] == {
        "branches": {"main": commits[2]},
        "tags": {"prod": commits[0], "candidate": commits[1], **numbers},
        "pulls": 0,
    }
    assert seen["commits"] == [[commit, f"v{3 - i}", ["local"]] for i, commit in enumerate(reversed(commits))]
    assert seen["models"] == [repo]
    assert seen["whoami"] == "local"
    assert seen["exists"] == [True, False, True, True, False, False, True, False]
    assert {key: value for key, value in seen["errors"].items() if key not in ("entry", "tree", "write")} == {
        "repository": "RepositoryNotFoundError",
        "repository_file": "RepositoryNotFoundError",
        "revision": "RevisionNotFoundError",
        "revision_quoted": "RevisionNotFoundError",
        "revision_alias": "RevisionNotFoundError",
        "dataset": "RepositoryNotFoundError",
    }
    # The newer name says that it is the remote that has no such file; it is a subclass.
    assert {seen["errors"]["entry"], seen["errors"]["tree"]} <= {"EntryNotFoundError", "RemoteEntryNotFoundError"}
    assert seen["errors"]["write"] is None

    assert cuts == 1
    assert seen["resumed"]["files"] == {"notes.txt": hashlib.sha256(NOTES).hexdigest()}
    whole = f"/hf/hub/python/resolve/{seen['resumed']['commit']}/notes.txt"
    assert requests.count(f"GET {whole}") == 2
    assert b"range: bytes=10485760-" in bytes(proxy.sent).lower()

    assert seen["moved"] == snapshots[2]
    assert seen["yanked"] == {
        "by_tag": "RevisionNotFoundError",
        "by_tag_file": "RevisionNotFoundError",
        "by_alias": "RevisionNotFoundError",
        "by_number": commits[2],
        "by_main": commits[1],
        "refs": ["candidate", "v1", "v2", "v3"],
    }
    assert seen["rolled_back"] == commits[0]
    assert not any("xet" in request for request in requests)
