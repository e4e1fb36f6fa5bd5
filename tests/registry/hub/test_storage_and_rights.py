"""The registry asks for tokens and keeps its blobs in S3: clients fetch from the store, which never sees a token."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.registry.hub.clients import VERSIONS, python_with, run
from tests.registry.hub.conftest import push_base
from tests.registry.hub.recording import RecordingProxy
from tests.registry.site import until
from tests.support.push import push_folder
from tests.support.s3 import BUCKET, REGION, S3Server
from tests.support.service import Service, running


@dataclass(frozen=True)
class Guarded:
    """`writer` may do all; `reader` reads the namespace `hub`; `stranger` reads another one."""

    service: Service
    storage: RecordingProxy
    writer: str
    reader: str
    stranger: str

    @property
    def hub(self) -> str:
        return self.service.url + "/hf"


@pytest.fixture(scope="module")
def guarded(ministack_server: S3Server, testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    data = tmp_path_factory.mktemp("guarded")
    with RecordingProxy(urlsplit(ministack_server.http).port or 0) as storage:
        environment = {
            "LORA_REG_AUTH": "token",
            "LORA_REG_STORAGE_URL": f"s3://{BUCKET}/hub",
            "LORA_REG_S3_ENDPOINT_URL": storage.url,
            "LORA_REG_S3_REGION": REGION,
            "AWS_ACCESS_KEY_ID": ministack_server.access_key,
            "AWS_SECRET_ACCESS_KEY": ministack_server.secret_key,
        }
        with running(data, extra=environment) as service:
            writer = token(service, "ci", "admin")
            with httpx.Client(
                base_url=service.url, timeout=60, headers={"authorization": f"Bearer {writer}"}
            ) as client:
                assert push_base(client, testbed).status_code == 201
                folder = testbed / "adapters" / "lora-r8-qv-python"
                pushed = push_folder(client, "hub", "python", "adapter", folder, base="default/tiny", tags=["prod"])
                assert pushed.status_code == 201, pushed.text
                # The inspection reads the files too.
                until(lambda: client.get(f"/api/v1/jobs/{pushed.json()['job']}").json()["state"] == "done")
            reader = token(service, "server", "reader", "--namespace", "hub")
            stranger = token(service, "stranger", "reader", "--namespace", "other")
            yield Guarded(service, storage, writer, reader, stranger)


def token(service: Service, name: str, role: str, *options: str) -> str:
    command = [sys.executable, "-m", "lora_registry.cli", "token", "create", name, "--role", role, *options]
    done = subprocess.run(command, env=service.environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("version", VERSIONS)
def test_bytes_come_from_the_store_and_the_token_does_not_go_there(
    guarded: Guarded, testbed: Path, version: str, tmp_path: Path
) -> None:
    before = len(guarded.storage.requests())
    wanted = [{"repo_id": "hub/python", "revision": "prod"}]
    (seen,) = run(
        python_with(version), "hub_fetch.py", {"wanted": wanted},
        endpoint=guarded.hub, home=tmp_path, token=guarded.reader,
    )  # fmt: skip
    assert set(seen["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    folder = tmp_path / "hub" / "models--hub--python" / "snapshots" / seen["commit"]
    for path in (testbed / "adapters" / "lora-r8-qv-python").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    asked = guarded.storage.requests()[before:]
    presigned = [request for request in asked if request.startswith("GET ") and "X-Amz-Signature=" in request]
    # By HEAD the service itself looks whether the store has the file in its full length.
    assert len(presigned) == len([request for request in asked if not request.startswith("HEAD ")]) == 2
    for secret in (guarded.reader, guarded.writer):
        assert secret.encode() not in guarded.storage.sent
    assert guarded.reader not in guarded.service.log.read_text()


def test_files_go_to_the_store_at_once_or_in_parts_and_the_token_does_not(guarded: Guarded) -> None:
    headers = {"authorization": f"Bearer {guarded.writer}"}
    repo = "hub/sent"
    created = httpx.post(
        f"{guarded.hub}/api/repos/create", json={"name": "sent", "organization": "hub"}, headers=headers
    )
    assert created.status_code == 200, created.text
    files = [random.Random(1).randbytes(2_000_000), random.Random(2).randbytes(33 * 1024 * 1024)]
    objects = [{"oid": hashlib.sha256(data).hexdigest(), "size": len(data)} for data in files]
    body = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": objects}
    batch = httpx.post(f"{guarded.hub}/{repo}.git/info/lfs/objects/batch", json=body, headers=headers)
    assert batch.headers["cache-control"] == "no-store"
    one, two = batch.json()["objects"]
    storage = f"http://127.0.0.1:{urlsplit(guarded.storage.url).port}/"

    url = one["actions"]["upload"]["href"]
    assert url.startswith(storage)
    assert httpx.put(url, content=files[0][1:]).status_code >= 400, "the length is signed"
    assert httpx.put(url, content=files[0]).status_code == 200
    verify = one["actions"]["verify"]["href"]
    sent = httpx.post(verify, json={"oid": one["oid"], "size": len(files[0])}, headers=headers, timeout=60)
    assert sent.status_code == 200, sent.text

    header = two["actions"]["upload"]["header"]
    step = int(header.pop("chunk_size"))
    for place, (_, part) in enumerate(sorted(header.items())):
        assert part.startswith(storage)
        answer = httpx.put(part, content=files[1][place * step : (place + 1) * step], timeout=60)
        assert answer.status_code == 200 and answer.headers["etag"], answer.text
    # Nobody says that they are there: the commit looks.
    lines = [
        {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": item["oid"], "size": item["size"]}}
        for path, item in (("a.dat", one), ("b.dat", two))
    ]
    commit = f"{guarded.hub}/api/models/{repo}/commit/main"
    done = httpx.post(commit, content="\n".join(map(json.dumps, lines)), headers=headers, timeout=60)
    assert done.status_code == 200, done.text
    for path, data in zip(("a.dat", "b.dat"), files, strict=True):
        found = httpx.get(f"{guarded.hub}/{repo}/resolve/main/{path}", headers=headers, follow_redirects=True)
        assert found.content == data
    assert guarded.writer.encode() not in guarded.storage.sent
    log = guarded.service.log.read_text()
    assert guarded.writer not in log and two["actions"]["upload"]["href"].split("/")[-2] not in log


@pytest.mark.parametrize("version", VERSIONS)
def test_what_may_not_be_read_is_not_there(guarded: Guarded, version: str, tmp_path: Path) -> None:
    wanted = [{"repo_id": "hub/python", "revision": "prod"}, {"repo_id": "hub/nothing"}, {"repo_id": "tiny"}]
    for number, secret in enumerate((guarded.stranger, "", "hf_" + "x" * 40)):
        seen = run(
            python_with(version), "hub_fetch.py", {"wanted": wanted},
            endpoint=guarded.hub, home=tmp_path / str(number), token=secret,
        )  # fmt: skip
        kinds = {item["error"] for item in seen}
        # 0.36 wraps it where there is nothing in its cache to fall back to.
        assert kinds <= {"RepositoryNotFoundError", "LocalEntryNotFoundError"}, seen


def test_a_stranger_cannot_tell_what_is_hidden_from_what_is_not_there(guarded: Guarded) -> None:
    headers = {"authorization": f"Bearer {guarded.stranger}"}
    answers = []
    for name in ("python", "absent"):
        for path in (
            f"api/models/hub/{name}",
            f"hub/{name}/resolve/prod/adapter_config.json",
            f"api/models/hub/{name}.prod",
        ):
            answer = httpx.get(f"{guarded.hub}/{path}", headers=headers)
            answers.append(
                (answer.status_code, answer.headers["x-error-code"], answer.json()["error"].replace(name, "NAME"))
            )
    assert answers[:3] == answers[3:]
    assert {answer[:2] for answer in answers} == {(404, "RepoNotFound")}
    assert httpx.get(f"{guarded.hub}/api/models", headers=headers).json() == []
    assert httpx.get(f"{guarded.hub}/api/models?author=hub", headers=headers).json() == []
    # Not even by what trainers call a base of another namespace.
    assert httpx.get(f"{guarded.hub}/api/models/Some.Org/Tiny-Llama", headers=headers).status_code == 404


def test_without_a_token_no_401_is_bare(guarded: Guarded) -> None:
    for headers in ({}, {"authorization": "Bearer hf_wrong"}, {"authorization": "Basic x"}):
        for method, path in (
            ("GET", "api/models/hub/python"),
            ("HEAD", "hub/python/resolve/prod/x"),
            ("GET", "api/models"),
        ):
            answer = httpx.request(method, f"{guarded.hub}/{path}", headers=headers)
            assert (answer.status_code, answer.headers["x-error-code"]) == (401, "RepoNotFound")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{guarded.hub}/api/agent-harnesses").status_code == 404


def test_a_reader_may_read_and_no_more(guarded: Guarded) -> None:
    headers = {"authorization": f"Bearer {guarded.reader}"}
    check = f"{guarded.hub}/api/models/hub/python/auth-check"
    assert httpx.get(check, headers=headers).status_code == 200
    assert httpx.get(check + "/write", headers=headers).status_code == 403
    who = httpx.get(f"{guarded.hub}/api/whoami-v2", headers=headers).json()
    assert (who["name"], who["orgs"], who["auth"]["accessToken"]["role"]) == ("server", [{"name": "hub"}], "read")
    assert httpx.get(f"{guarded.hub}/api/models/hub/python", headers=headers).json()["private"] is True


def test_a_redirect_carries_what_the_rust_client_reads(guarded: Guarded) -> None:
    """It asks for one byte, reads commit and etag off the redirect, and the size off the store's answer."""
    url = f"{guarded.hub}/hub/python/resolve/prod/adapter_model.safetensors"
    headers = {"authorization": f"Bearer {guarded.reader}", "range": "bytes=0-0"}
    first = httpx.get(url, headers=headers)
    assert first.status_code == 302
    assert len(first.headers["x-repo-commit"]) == 40
    size = int(first.headers["x-linked-size"])
    second = httpx.get(first.headers["location"], headers={"range": "bytes=0-0"})
    assert (second.status_code, second.headers["content-range"]) == (206, f"bytes 0-0/{size}")
    head = httpx.head(url, headers=headers | {"range": ""})
    assert (head.status_code, head.headers["content-length"]) == (200, str(size))
