"""What the real huggingface_hub writes: repositories, commits, tags and branches."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.registry.hub.conftest import World, read
from tests.registry.site import unique

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def api(world: World) -> HfApi:
    return HfApi(endpoint=world.hub, token=False)


@pytest.fixture(scope="module")
def adapter(testbed: Path) -> dict[str, bytes]:
    return read(testbed / "adapters" / "lora-r8-qv-python")


@pytest.fixture
def repo(api: HfApi) -> str:
    return api.create_repo(f"hub/{unique('w')}").repo_id


def add(files: Mapping[str, bytes]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, data) for path, data in files.items()]


def versions(world: World, repo: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = world.client.get(f"/api/v1/repositories/{repo}/versions").json().get("items", [])
    return items


def refused(call: Callable[[], Any], kind: type[HfHubHTTPError] = HfHubHTTPError) -> httpx.Response:
    with pytest.raises(kind) as raised:
        call()
    return raised.value.response  # type: ignore[return-value]


def test_files_become_a_version_once_they_are_whole(
    world: World, api: HfApi, adapter: dict[str, bytes], repo: str, tmp_path: Path
) -> None:
    assert api.repo_exists(repo)
    assert (api.model_info(repo).siblings, api.list_repo_files(repo)) == ([], [])
    first = api.upload_file(path_or_fileobj=b"# Card", path_in_repo="README.md", repo_id=repo)
    assert api.model_info(repo).sha == first.oid
    assert api.list_repo_refs(repo).branches[0].target_commit == first.oid
    assert Path(api.hf_hub_download(repo, "README.md", cache_dir=tmp_path)).read_bytes() == b"# Card"
    assert refused(lambda: api.hf_hub_download(repo, "x", cache_dir=tmp_path), EntryNotFoundError).status_code == 404
    api.create_commit(repo, add({CONFIG: adapter[CONFIG]}), commit_message="The config")
    assert versions(world, repo) == []

    done = api.create_commit(
        repo,
        add({WEIGHTS: adapter[WEIGHTS], "training_args.bin": b"\x80\x04pickle", "checkpoint-3/optimizer.pt": b"x"}),
        commit_message="Training in progress, step 30",
        commit_description="Long\ntext",
    )
    (version,) = versions(world, repo)
    assert (done.oid, done.commit_url) == (version["commit"], f"{world.hub}/{repo}/commit/{version['commit']}")
    assert version["message"] == "Training in progress, step 30\n\nLong\ntext"
    assert (version["meta"], version["kind"]) == ({"source": "hub", "step": "30"}, "adapter")
    assert version["base"]["name"] == "tiny"
    assert {file["path"]: file["digest"] for file in version["files"]} == {
        path: f"sha256:{hashlib.sha256(data).hexdigest()}"
        for path, data in {**adapter, "README.md": b"# Card"}.items()
        if path != "notes.txt"
    }
    assert api.model_info(repo).sha == done.oid

    # A file that changes makes a version on top of the newest; what has not changed makes none.
    second = api.upload_file(path_or_fileobj=b"# New card", path_in_repo="README.md", repo_id=repo)
    assert [item["number"] for item in versions(world, repo)] == [2, 1]
    again = api.upload_file(path_or_fileobj=b"# New card", path_in_repo="README.md", repo_id=repo)
    assert (again.oid, len(versions(world, repo))) == (second.oid, 2)
    api.create_commit(
        repo,
        [CommitOperationDelete("README.md"), CommitOperationCopy(CONFIG, "config.txt")],
        commit_message="Without a card",
    )
    assert sorted(file["path"] for file in versions(world, repo)[0]["files"]) == [
        CONFIG, WEIGHTS, "config.txt"
    ]  # fmt: skip
    assert {event["kind"] for event in _events(world, repo)} == {
        *("repository-announced", "files-staged", "repository-created", "version-committed"),
    }


@pytest.mark.parametrize(
    ("path", "command"), [("pytorch_lora_weights.safetensors", "lora-reg import"), ("model_index.json", "base add")]
)
def test_files_of_diffusers_are_refused_with_the_command(
    world: World, api: HfApi, repo: str, path: str, command: str
) -> None:
    """What the training scripts and `push_to_hub` of diffusers upload becomes no version by itself."""
    answer = refused(lambda: api.create_commit(repo, add({path: b"{}", "README.md": b"x"}), commit_message="x"))
    assert path in answer.text and command in answer.headers["X-Error-Message"]
    assert versions(world, repo) == []


def _events(world: World, repo: str) -> list[dict[str, Any]]:
    items = world.client.get("/api/v1/events", params={"limit": 1000}).json()["items"]
    return [event for event in items if event["subject"].partition(":")[0] == repo]


def test_a_commit_that_the_checks_refuse_changes_nothing_and_can_be_corrected(
    world: World, api: HfApi, adapter: dict[str, bytes], repo: str
) -> None:
    staged = api.create_commit(repo, add({CONFIG: adapter[CONFIG]}), commit_message="The config")
    wrong = adapter[WEIGHTS][:-1000]
    answer = refused(lambda: api.create_commit(repo, add({WEIGHTS: wrong}), commit_message="Weights"))
    assert (answer.status_code, answer.headers["x-error-code"]) == (422, "rejected")
    assert answer.headers["x-error-message"].startswith(answer.json()["error"])
    assert "1000 bytes are missing at the end" in answer.headers["x-error-message"]
    assert (api.model_info(repo).sha, api.list_repo_files(repo)) == (staged.oid, [CONFIG])
    api.create_commit(repo, add({WEIGHTS: adapter[WEIGHTS]}), commit_message="Weights")
    assert len(versions(world, repo)) == 1


def test_a_base_that_nobody_registered_is_named(api: HfApi, adapter: dict[str, bytes], repo: str) -> None:
    config = json.dumps({**json.loads(adapter[CONFIG]), "base_model_name_or_path": "org/none"}).encode()
    answer = refused(lambda: api.create_commit(repo, add({**adapter, CONFIG: config}), commit_message="x"))
    assert "names the base 'org/none', which is not registered here" in answer.headers["x-error-message"]
    assert "lora-reg base add NAME DIR --alias org/none" in answer.headers["x-error-message"]


def test_pickles_and_unknown_by_products_are_no_version(api: HfApi, adapter: dict[str, bytes], repo: str) -> None:
    pickled = {CONFIG: adapter[CONFIG], "adapter_model.bin": b"\x80"}
    answer = refused(lambda: api.create_commit(repo, add(pickled), commit_message="x"))
    assert "safe_serialization" in answer.headers["x-error-message"]
    for path in ("a/../b", "CON", "a:b"):
        with pytest.raises((HfHubHTTPError, ValueError)):
            api.create_commit(repo, add({path: b"x"}), commit_message="x")
    assert api.list_repo_files(repo) == []


def test_a_folder_is_uploaded_and_what_it_no_longer_has_is_deleted(
    world: World, api: HfApi, adapter: dict[str, bytes], repo: str, tmp_path: Path
) -> None:
    left = {"optimizer.pt": b"never sent", "config.json": b"{}"}
    for path, data in {**adapter, "README.md": b"---\ntags: [x]\n---\n", **left}.items():
        (tmp_path / path).write_bytes(data)
    api.upload_folder(repo_id=repo, folder_path=tmp_path)
    assert set(api.list_repo_files(repo)) == {CONFIG, WEIGHTS, "README.md"}
    (tmp_path / "README.md").unlink()
    api.upload_folder(repo_id=repo, folder_path=tmp_path, delete_patterns=["*.md"])
    assert (set(api.list_repo_files(repo)), len(versions(world, repo))) == ({CONFIG, WEIGHTS}, 2)
    assert refused(lambda: api.delete_file("nope", repo), EntryNotFoundError).status_code == 404


def test_a_name_keeps_its_capitals(world: World, api: HfApi, adapter: dict[str, bytes]) -> None:
    name = f"hub/{unique('Qwen2.5-LoRA')}"
    assert api.create_repo(name).repo_id == name
    assert api.create_repo(name.lower(), exist_ok=True).repo_id.lower() == name.lower()
    api.create_commit(name.lower(), add({CONFIG: adapter[CONFIG]}), commit_message="1")
    assert api.list_repo_files(name) == [CONFIG]
    api.create_commit(name, add({WEIGHTS: adapter[WEIGHTS]}), commit_message="2")
    assert api.model_info(name.lower()).sha == api.model_info(name).sha
    assert name in [item.id for item in api.list_models(author="hub")]


def test_a_parent_commit_is_a_precondition(world: World, api: HfApi, adapter: dict[str, bytes], repo: str) -> None:
    first = api.create_commit(repo, add(adapter), commit_message="1")
    second = api.create_commit(repo, add({"a.txt": b"1"}), commit_message="2", parent_commit=first.oid)
    stale = refused(lambda: api.create_commit(repo, add({"b.txt": b"1"}), commit_message="3", parent_commit=first.oid))
    assert (stale.status_code, stale.headers["x-error-code"]) == (412, "precondition-failed")
    api.create_commit(repo, add({"b.txt": b"1"}), commit_message="3", parent_commit=second.oid)
    assert len(versions(world, repo)) == 3


def test_a_repository_is_created_once_and_deleted(world: World, api: HfApi, adapter: dict[str, bytes]) -> None:
    name = f"hub/{unique('made')}"
    made = api.create_repo(name, private=True)
    assert (str(made), made.repo_id) == (f"{world.hub}/{name}", name)
    assert refused(lambda: api.create_repo(name)).status_code == 409
    assert api.create_repo(name, exist_ok=True).repo_id == name
    assert api.create_repo(unique("bare")).repo_id.startswith("default/")
    assert refused(lambda: api.create_repo("api/x"), BadRequestError).status_code == 400
    assert refused(lambda: api.create_repo("hub/space", repo_type="space", space_sdk="static")).status_code == 422
    api.delete_repo(name)
    assert not api.repo_exists(name)
    assert refused(lambda: api.delete_repo(name), RepositoryNotFoundError).status_code == 404
    api.delete_repo(name, missing_ok=True)

    api.create_repo(name)
    api.create_commit(name, add(adapter), commit_message="x")
    assert refused(lambda: api.create_repo(name)).status_code == 409
    api.delete_repo(name)
    assert not api.repo_exists(name)
    assert "was deleted" in refused(lambda: api.create_repo(name, exist_ok=True)).headers["x-error-message"]


def test_tags_are_our_tags(world: World, api: HfApi, adapter: dict[str, bytes], repo: str) -> None:
    assert refused(lambda: api.create_tag(repo, tag="early"), RevisionNotFoundError).status_code == 404
    first = api.create_commit(repo, add(adapter), commit_message="1")
    second = api.create_commit(repo, add({"a.txt": b"1"}), commit_message="2")
    api.create_tag(repo, tag="candidate", tag_message="good")
    api.create_tag(repo, tag="old", revision=first.oid)
    assert refused(lambda: api.create_tag(repo, tag="candidate", revision="v1")).status_code == 409
    api.create_tag(repo, tag="candidate", revision="v1", exist_ok=True)
    found = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).tags}
    assert (found["candidate"], found["old"]) == (second.oid, first.oid)
    history = world.client.get(f"/api/v1/repositories/{repo}/history").json()["items"]
    assert [(item["tag"], item["to_number"], item["reason"]) for item in history] == [
        ("old", 1, ""), ("candidate", 2, "good")
    ]  # fmt: skip
    assert refused(lambda: api.create_tag(repo, tag="v9"), BadRequestError).status_code == 400
    assert refused(lambda: api.create_tag(repo, tag="x", revision="none"), RevisionNotFoundError).status_code == 404
    api.delete_tag(repo, tag="old")
    assert refused(lambda: api.delete_tag(repo, tag="old"), RevisionNotFoundError).status_code == 404
    protection = f"/api/v1/repositories/{repo}/tags/candidate/protection"
    assert world.client.put(protection, json={"protected": True}).status_code == 200
    assert refused(lambda: api.delete_tag(repo, tag="candidate")).status_code == 428


def test_a_governed_tag_is_not_created_in_silence(
    world: World, api: HfApi, adapter: dict[str, bytes], repo: str
) -> None:
    """Clients take 409 for success when they are told `exist_ok`."""
    api.create_commit(repo, add(adapter), commit_message="1")
    body = {"pattern": f"{repo}:prod", "document": {"name": "any"}}
    policy = world.client.put("/api/v1/policies", json=body)
    assert policy.status_code == 200, policy.text
    answer = refused(lambda: api.create_tag(repo, tag="prod", exist_ok=True))
    assert (answer.status_code, answer.headers["x-error-code"]) == (403, "tag-gated")


def test_a_branch_is_a_tag_that_commits_move(world: World, api: HfApi, adapter: dict[str, bytes], repo: str) -> None:
    first = api.create_commit(repo, add(adapter), commit_message="1")
    api.create_branch(repo, branch="wild")
    api.create_branch(repo, branch="wild", exist_ok=True)
    assert refused(lambda: api.create_branch(repo, branch="wild")).status_code == 409
    api.create_commit(repo, add({"main.txt": b"1"}), commit_message="2")
    third = api.create_commit(repo, add({"wild.txt": b"1"}), commit_message="3", revision="wild")
    assert api.model_info(repo, revision="wild").sha == third.oid != first.oid
    assert set(api.list_repo_files(repo, revision="wild")) == {CONFIG, WEIGHTS, "wild.txt"}
    assert refused(
        lambda: api.create_commit(repo, add({"x": b"1"}), commit_message="x", revision="none"), RevisionNotFoundError
    )
    assert refused(
        lambda: api.create_commit(repo, add({"x": b"1"}), commit_message="x", revision=first.oid), RevisionNotFoundError
    )
    api.delete_branch(repo, branch="wild")
    assert not api.revision_exists(repo, "wild")
    assert refused(lambda: api.delete_branch(repo, branch="main")).status_code == 403
    assert len(versions(world, repo)) == 3


def test_a_branch_of_an_empty_repository_takes_commits(
    world: World, api: HfApi, adapter: dict[str, bytes], repo: str
) -> None:
    api.create_branch(repo, branch="wild")
    api.create_commit(repo, add({CONFIG: adapter[CONFIG]}), commit_message="1", revision="wild")
    assert api.list_repo_files(repo) == []
    assert api.list_repo_files(repo, revision="wild") == [CONFIG]
    done = api.create_commit(repo, add({WEIGHTS: adapter[WEIGHTS]}), commit_message="2", revision="wild")
    assert api.model_info(repo, revision="wild").sha == done.oid
    assert versions(world, repo)[0]["tags"] == ["wild"]


def test_a_whole_model_is_of_kind_model(world: World, api: HfApi, repo: str, testbed: Path) -> None:
    base = read(testbed / "base")
    api.create_commit(repo, add({"tokenizer.json": base.pop("tokenizer.json")}), commit_message="Upload tokenizer")
    shard = next(path for path in base if path.endswith("00001-of-00002.safetensors"))
    last = base.pop(shard)
    api.create_commit(repo, add(base), commit_message="Upload model")
    assert versions(world, repo) == []
    api.create_commit(repo, add({shard: last}), commit_message="Upload model")
    (version,) = versions(world, repo)
    assert (version["kind"], version["base"]) == ("model", None)
    assert version["facts"]["architecture"] == "LlamaForCausalLM"
    other = refused(lambda: api.create_commit(repo, add({CONFIG: b"{}", WEIGHTS: b""}), commit_message="x"))
    assert other.status_code in (409, 422)


def test_a_dataset_is_an_evaluation_set(world: World, api: HfApi, tmp_path: Path) -> None:
    name = api.create_repo(f"hub/{unique('eval')}", repo_type="dataset").repo_id
    lines = b'{"text": "select 1"}\n{"text": "select 2"}\n'
    api.upload_file(path_or_fileobj=b"# Texts", path_in_repo="README.md", repo_id=name, repo_type="dataset")
    parquet = {"data/train-00000-of-00001.parquet": b"PAR1"}
    answer = refused(lambda: api.create_commit(name, add(parquet), commit_message="x", repo_type="dataset"))
    assert "A dataset is a single file data.jsonl" in answer.headers["x-error-message"]
    done = api.upload_file(path_or_fileobj=lines, path_in_repo="data.jsonl", repo_id=name, repo_type="dataset")
    (version,) = versions(world, name)
    assert (version["kind"], version["commit"], version["facts"]["records"]) == ("dataset", done.oid, 2)
    folder = api.snapshot_download(name, repo_type="dataset", cache_dir=tmp_path)
    assert (Path(folder) / "data.jsonl").read_bytes() == lines
    assert name in [item.id for item in api.list_datasets(author="hub")]
    assert name not in [item.id for item in api.list_models(author="hub")]
    assert not api.repo_exists(name)
    assert api.repo_exists(name, repo_type="dataset")
    assert list(api.list_spaces()) == []


def test_models_are_found_by_their_base(world: World, api: HfApi, adapter: dict[str, bytes], repo: str) -> None:
    api.create_commit(repo, add(adapter), commit_message="1")
    for name in ("default/tiny", "lora-reg-fixture/tiny-llama-4m", "Some.Org/Tiny-Llama"):
        found = [item.id for item in api.list_models(filter=f"base_model:adapter:{name}")]
        assert repo in found, name
    assert list(api.list_models(filter="base_model:adapter:org/none")) == []
    head = httpx.get(f"{world.hub}/api/models/{repo}/revision/HEAD").json()  # as JavaScript clients ask
    assert head["sha"] == api.model_info(repo).sha


def test_concurrent_commits_lose_nothing(world: World, api: HfApi, adapter: dict[str, bytes], repo: str) -> None:
    api.create_commit(repo, add(adapter), commit_message="1")
    futures = [
        api.create_commit(repo, add({f"{number}.txt": b"1"}), commit_message=f"{number}", run_as_future=True)
        for number in range(3)
    ]
    with httpx.Client(base_url=world.hub) as client:
        body = b'{"key":"header","value":{"summary":"x"}}\n'
        for number in range(3):
            line = {"key": "file", "value": {"content": "MQ==", "path": f"raw-{number}.txt", "encoding": "base64"}}
            sent = client.post(f"/api/models/{repo}/commit/main", content=body + json.dumps(line).encode())
            assert sent.status_code == 200, sent.text
    for future in futures:
        future.result()
    wanted = {*(f"{number}.txt" for number in range(3)), *(f"raw-{number}.txt" for number in range(3))}
    assert wanted <= set(api.list_repo_files(repo))
    assert [item["number"] for item in versions(world, repo)] == [7, 6, 5, 4, 3, 2, 1]


def test_what_is_no_commit_is_refused_before_or_while_it_arrives(world: World, api: HfApi, repo: str) -> None:
    def post(path: str, content: bytes = b"") -> tuple[int, str]:
        answer = httpx.post(f"{world.hub}/api/models/{path}", content=content)
        return answer.status_code, answer.headers["x-error-code"]

    assert post("hub/none/commit/main") == (404, "RepoNotFound")
    assert post(f"{repo}/commit/none") == (404, "RevisionNotFound")
    assert post(f"{repo}/commit/main?create_pr=1") == (422, "unsupported")
    assert post(f"{repo}/commit/main", b"nonsense") == (400, "invalid-request")
    assert post(f"{repo}/preupload/main", b'{"files": 7}') == (400, "invalid-request")
    assert post(f"{repo}/preupload/main", b"x" * 5_000_000) == (413, "too-large")
    assert httpx.post(f"{world.hub}/channels/prod/api/models/{repo}/commit/main").status_code == 405
    xet = httpx.get(f"{world.hub}/api/models/{repo}/xet-write-token/main")
    assert (xet.status_code, "HF_HUB_DISABLE_XET=1" in xet.headers["x-error-message"]) == (422, True)
    files = {"files": [{"path": "a.safetensors", "size": 2**30 + 1}, {"path": "runs/x", "size": 1}]}
    for agent, printed in (("unknown/None; hf_hub/2.4.0; python/3.11", True), ("hf_hub/0.36.2", False)):
        answer = httpx.post(f"{world.hub}/api/models/{repo}/preupload/main", json=files, headers={"user-agent": agent})
        assert [file["uploadMode"] for file in answer.json()["files"]] == ["lfs", "regular"]
        assert ("HF_HUB_DISABLE_XET=1" in answer.headers["x-hf-warning"]) is printed
        assert answer.headers["x-hf-warning"].endswith("Left out: runs/x")


def lfs(world: World, repo: str, files: list[bytes], *transfers: str) -> list[dict[str, Any]]:
    objects = [{"oid": hashlib.sha256(data).hexdigest(), "size": len(data)} for data in files]
    body = {"operation": "upload", "transfers": list(transfers), "objects": objects, "hash_algo": "sha256"}
    answer = httpx.post(f"{world.hub}/{repo}.git/info/lfs/objects/batch", json=body)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["objects"]
    return found


def test_a_file_is_sent_by_lfs_at_once_or_in_parts(world: World, api: HfApi, repo: str) -> None:
    short, long = random.Random(1).randbytes(1000), random.Random(2).randbytes(33 * 1024 * 1024)
    one, two = lfs(world, repo, [short, long], "basic", "multipart")
    url = one["actions"]["upload"]["href"]
    assert httpx.put(url, content=b"other bytes").status_code == 422
    assert httpx.put(url, content=short).status_code == 200
    verify = {"oid": one["oid"], "size": len(short)}
    assert httpx.post(one["actions"]["verify"]["href"], json=verify).status_code == 200
    assert httpx.post(one["actions"]["verify"]["href"], json={**verify, "size": 1}).status_code == 404

    header = two["actions"]["upload"]["header"]
    step = int(header.pop("chunk_size"))
    etags = []
    for place, (number, part) in enumerate(sorted(header.items())):
        sent = httpx.put(part, content=long[place * step : (place + 1) * step])
        assert sent.status_code == 200, sent.text
        etags.append({"partNumber": int(number), "etag": sent.headers["etag"]})
    done = httpx.post(two["actions"]["upload"]["href"], json={"oid": two["oid"], "parts": etags}, timeout=60)
    assert done.status_code == 200, done.text
    assert all("actions" not in item for item in lfs(world, repo, [short, long], "basic"))

    lines = [{"key": "header", "value": {"summary": "x"}}] + [
        {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": item["oid"], "size": item["size"]}}
        for path, item in (("a.bin2", one), ("b.bin2", two))
    ]
    body = "\n".join(map(json.dumps, lines))
    sent = httpx.post(f"{world.hub}/api/models/{repo}/commit/main", content=body, timeout=60)
    assert sent.status_code == 200, sent.text
    assert api.list_repo_files(repo) == ["a.bin2", "b.bin2"]
    with httpx.stream("GET", f"{world.hub}/{repo}/resolve/main/b.bin2") as answer:
        assert hashlib.sha256(answer.read()).hexdigest() == two["oid"]


def test_what_was_not_sent_cannot_be_committed(world: World, repo: str) -> None:
    (one,) = lfs(world, repo, [unique("bytes").encode()], "basic")
    item = {"path": "a", "algo": "sha256", "oid": one["oid"], "size": one["size"]}
    for value in (item, {**item, "oid": "0" * 64}):
        body = json.dumps({"key": "lfsFile", "value": value})
        answer = httpx.post(f"{world.hub}/api/models/{repo}/commit/main", content=body)
        assert (answer.status_code, answer.headers["x-error-code"]) == (422, "rejected")


def test_a_secret_of_a_url_is_good_for_its_own_files_alone(world: World, repo: str) -> None:
    mine = unique("mine").encode()
    (one,) = lfs(world, repo, [mine], "basic")
    url = one["actions"]["upload"]["href"]
    other = url.replace(one["oid"], hashlib.sha256(b"other").hexdigest())
    assert httpx.put(other, content=b"other").status_code == 404
    secret = url.split("/")[-2]
    assert httpx.put(url.replace(secret, "x" * len(secret)), content=mine).status_code == 404
    with contextlib.suppress(httpx.HTTPError):
        assert httpx.put(url + "/0", content=mine).status_code in (200, 400)


def test_an_adapter_can_be_moved_to_files_of_another_name_by_copies(
    world: World, api: HfApi, adapter: dict[str, bytes], repo: str
) -> None:
    api.create_commit(repo, add(adapter), commit_message="1")
    copy = CommitOperationCopy(src_path_in_repo=WEIGHTS, path_in_repo="copies/weights.safetensors")
    answer = refused(lambda: api.create_commit(repo, [copy], commit_message="2"))
    assert answer.status_code == 422  # the checks know one file of weights
