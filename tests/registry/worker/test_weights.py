"""Weights of bases that were registered by hf:// follow when a job needs them: from a second registry, as the Hub."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlmodel import select

from lora_contract.base import parse_fingerprint
from lora_contract.errors import RegistryError
from lora_registry.db.tables import TaskLease, Version, VersionBlob
from lora_registry.worker import weights
from tests.registry.site import DATABASES, Site, open_site, unique
from tests.support import service
from tests.support.adapters import fingerprint_of_files, make_base, make_draft, read_folder
from tests.support.command import Home
from tests.support.front import Answer, Front
from tests.support.push import describe, push, upload
from tests.support.s3 import BUCKET, S3Server

PART = 5 * 1024**2
REPOSITORY = "acme/tiny"


@dataclass
class Job:
    """What `ensure` has of a job."""

    job_id: str = field(default_factory=lambda: unique("job"))
    told: list[str] = field(default_factory=list)

    def progress(self, step: str, message: str, **_: Any) -> None:
        self.told.append(f"{step}: {message}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of two shards, each longer than a part."""
    return make_base(tmp_path_factory.mktemp("base"), hidden=256, intermediate=256, vocab=12_000, layers=1, shards=2)


@pytest.fixture(scope="module")
def elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.InProcess]:
    """The registry whose Hub dialect is the Hub."""
    work = tmp_path_factory.mktemp("elsewhere")
    with service.in_process(work / "data") as running:
        Home(work / "home", running.url).ok("base", "add", REPOSITORY, folder)
        yield running


@pytest.fixture(scope="module")
def hub(elsewhere: service.InProcess) -> Iterator[Front]:
    with Front(elsewhere.url) as front:
        yield front


@pytest.fixture(autouse=True)
def calm(hub: Front) -> None:
    hub.harm = None
    hub.log.clear()


@contextlib.contextmanager
def opened(database: str, folder: Path, hub: Front, request: pytest.FixtureRequest, **extra: str) -> Iterator[Site]:
    """A registry over SQLite and a folder, or PostgreSQL and S3."""
    with contextlib.ExitStack() as stack:
        if database == "postgresql":
            server: S3Server = request.getfixturevalue("ministack_server")
            stack.enter_context(server.credentials())
            extra |= {
                "LORA_REG_STORAGE_URL": f"s3://{BUCKET}/{unique('weights')}",
                "LORA_REG_S3_ENDPOINT_URL": server.http,
                "LORA_REG_S3_REGION": "us-east-1",
            }
        server_url = request.getfixturevalue("postgres_server") if database == "postgresql" else ""
        settings = {"LORA_REG_HUB_ENDPOINTS": f"{hub.url}/hf", "LORA_REG_UPLOAD_PART_BYTES": str(PART), **extra}
        site = stack.enter_context(open_site(database, folder, server_url, extra=settings))
        site.serve()
        yield site


@pytest.fixture(scope="module", params=DATABASES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hub: Front) -> Iterator[Site]:
    with opened(request.param, tmp_path_factory.mktemp("site"), hub, request) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hub: Front) -> Iterator[Site]:
    """A registry with tokens, so with namespaces that not everybody reads."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text("hf_secret\n")
    extra = {"LORA_REG_AUTH": "token", "LORA_REG_HUB_TOKEN_FILE": str(folder / "token")}
    with opened("sqlite", folder / "data", hub, request, **extra) as running:
        running.client.headers["Authorization"] = f"Bearer {running.token('admin')}"
        yield running


def pinned(site: Site, hub: Front, folder: Path, *, namespace: str = "", **more: Any) -> dict[str, Any]:
    """A base without its weights, as `base add NAME hf://` registers it. A registry without tokens shares what any of
    its versions has, so each has bytes of its own: see `distinct`."""
    files = read_folder(folder)
    small = {path: data for path, data in files.items() if not path.endswith(".safetensors")}
    namespace, name = namespace or unique("ns"), "base"
    session = upload(site.client, namespace, name, "base", small).json()["id"]
    commit = json.loads(hub_get(hub, f"/hf/api/models/{REPOSITORY}"))["sha"]
    body = {
        "session": session,
        "kind": "base",
        "files": describe(files),
        "weights_absent": True,
        "fingerprint": msgspec.to_builtins(fingerprint_of_files(files)),
        "weights_at": {"endpoint": f"{hub.url}/hf", "repository": REPOSITORY, "commit": commit},
        **more,
    }
    answer = site.client.post(f"/api/v1/repositories/{namespace}/{name}/versions", json=body)
    assert answer.status_code == 201, answer.text
    hub.log.clear()
    version: dict[str, Any] = answer.json()["version"]
    return version


def hub_get(hub: Front, path: str) -> bytes:
    import httpx

    return httpx.get(hub.url + path).content


def row(site: Site, version: dict[str, Any]) -> Version:
    assert site.thread is not None
    with site.thread.context.db.read() as session:
        return session.exec(select(Version).where(Version.digest == version["digest"]).order_by(-Version.id)).first()  # type: ignore[return-value,operator]


def ensure(site: Site, version: Version, job: Job | None = None) -> Job:
    assert site.thread is not None
    job = job or Job()
    weights.ensure(site.thread.context, job, [version.id])  # type: ignore[arg-type]
    return job


def show(site: Site, version: dict[str, Any]) -> dict[str, Any]:
    path = f"/api/v1/repositories/{version['namespace']}/{version['name']}/versions/v{version['number']}"
    found: dict[str, Any] = site.client.get(path).json()
    return found


def forget(site: Site, version: dict[str, Any]) -> None:
    """Delete a version for good, so that the next test fetches its bytes again."""
    path = f"/api/v1/repositories/{version['namespace']}/{version['name']}/versions/v{version['number']}"
    assert site.client.delete(path).status_code in (200, 204)


def ranges(hub: Front) -> list[tuple[str, str | None]]:
    return [
        (path.rpartition("/")[2], asked.get("range")) for _, path, asked in hub.log if path.endswith(".safetensors")
    ]


@pytest.fixture
def absent(site: Site, hub: Front, folder: Path) -> Iterator[dict[str, Any]]:
    version = pinned(site, hub, folder)
    yield version
    forget(site, version)


def test_weights_are_fetched_in_parts_once(site: Site, hub: Front, folder: Path, absent: dict[str, Any]) -> None:
    assert absent["weights_absent"] is True
    assert absent["weights_at"]["repository"] == REPOSITORY
    job = ensure(site, row(site, absent))
    found = show(site, absent)
    assert (found["weights_absent"], found["weights_at"], found["digest"]) == (False, None, absent["digest"])
    asked = ranges(hub)
    assert (
        len(asked) == len(set(asked)) == sum(-(-path.stat().st_size // PART) for path in folder.glob("*.safetensors"))
    )
    assert any("Fetching model-00001-of-00002.safetensors" in text for text in job.told)
    base = f"/api/v1/repositories/{absent['namespace']}/{absent['name']}/versions/v1/files"
    for path in folder.glob("*.safetensors"):
        assert site.client.get(f"{base}/{path.name}", follow_redirects=True).content == path.read_bytes()
    ensure(site, row(site, absent))
    assert ranges(hub) == asked
    subject = f"{absent['namespace']}/{absent['name']}"
    assert [event["kind"] for event in site.events(subject)].count("weights-added") == 1


def test_of_many_jobs_one_fetches(site: Site, hub: Front, absent: dict[str, Any]) -> None:
    jobs, version = [Job() for _ in range(6)], row(site, absent)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda job: ensure(site, version, job), jobs))
    asked = ranges(hub)
    assert len(asked) == len(set(asked)) == 4
    assert sum(any("Waiting" in text for text in job.told) for job in jobs) == 5


def test_a_fetch_that_broke_goes_on_with_the_parts_that_are_missing(
    site: Site, hub: Front, absent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_ATTEMPTS", 1)

    def harm(answer: Answer) -> None:
        if "bytes=0-" not in answer.asked.get("range", "bytes=0-"):
            answer.cut = 1000

    hub.harm = harm
    with pytest.raises(RegistryError) as raised:
        ensure(site, row(site, absent))
    assert raised.value.kind.retryable
    first = ranges(hub)
    hub.harm = None
    hub.log.clear()
    ensure(site, row(site, absent))
    assert ("model-00001-of-00002.safetensors", f"bytes=0-{PART - 1}") in first
    assert ("model-00001-of-00002.safetensors", f"bytes=0-{PART - 1}") not in ranges(hub)
    assert show(site, absent)["weights_absent"] is False


def test_a_cut_connection_is_tried_again_within_the_fetch(site: Site, hub: Front, absent: dict[str, Any]) -> None:
    cuts = iter([100, 1000])

    def harm(answer: Answer) -> None:
        if answer.path.endswith(".safetensors"):
            answer.cut = next(cuts, None)

    hub.harm = harm
    ensure(site, row(site, absent))
    assert show(site, absent)["weights_absent"] is False


def flipped(answer: Answer) -> None:
    if answer.path.endswith("model-00002-of-00002.safetensors"):
        answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])


def test_other_bytes_than_the_pinned_are_refused(site: Site, hub: Front, absent: dict[str, Any]) -> None:
    hub.harm = flipped
    with pytest.raises(RegistryError, match="other bytes of model-00002-of-00002") as raised:
        ensure(site, row(site, absent))
    assert raised.value.code == "digest-mismatch"
    assert show(site, absent)["weights_absent"] is True
    hub.harm = None
    hub.log.clear()
    ensure(site, row(site, absent))
    assert {name for name, _ in ranges(hub)} == {"model-00002-of-00002.safetensors"}


def test_a_fingerprint_that_is_not_that_of_the_weights_is_refused(site: Site, hub: Front, folder: Path) -> None:
    fingerprint = msgspec.to_builtins(fingerprint_of_files(read_folder(folder)))
    fingerprint["tensors"][0]["shape"] = [12_000, 128]
    parse_fingerprint(msgspec.json.encode(fingerprint))
    version = pinned(site, hub, folder, fingerprint=fingerprint)
    with pytest.raises(RegistryError, match="have other tensors than it was registered with") as raised:
        ensure(site, row(site, version))
    assert raised.value.code == "rejected"
    assert show(site, version)["weights_absent"] is True
    forget(site, version)


def test_only_hubs_of_the_settings_are_accessed(guarded: Site, hub: Front, folder: Path) -> None:
    namespace = unique("ns")
    at = {"endpoint": "http://169.254.169.254/hf", "repository": REPOSITORY, "commit": "0" * 40}
    version = pinned(guarded, hub, folder, namespace=namespace, weights_at=at)
    files = read_folder(folder)
    draft = make_draft(fingerprint_of_files(files), rank=2, seed=1).files()
    pushed = push(guarded.client, namespace, "one", "adapter", draft, base=f"{namespace}/base", accept_base=True)
    assert pushed.status_code == 201, pushed.text
    answer = guarded.client.post(
        "/api/v1/merges", json={"adapters": [{"adapter": f"{namespace}/one"}], "to": f"{namespace}/merged"}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported")
    said = answer.json()["detail"] + answer.json()["hint"]
    assert f"The weights of {namespace}/base:v1 are not stored" in said
    command = f"lora-reg base add {namespace}/base hf://{REPOSITORY}@{'0' * 40} --weights"
    assert f"`{command} --endpoint http://169.254.169.254/hf`" in said
    with pytest.raises(RegistryError, match=r"does not fetch from http://169\.254\.169\.254/hf"):
        ensure(guarded, row(guarded, version))
    assert not hub.log


@pytest.mark.parametrize(
    "at",
    [
        {"endpoint": "file:///etc", "repository": "a/b", "commit": "0" * 40},
        {"endpoint": "http://user@host/hf", "repository": "a/b", "commit": "0" * 40},
        {"endpoint": "http://host/hf?x=1", "repository": "a/b", "commit": "0" * 40},
        {"endpoint": "http://host/hf", "repository": "../b", "commit": "0" * 40},
        {"endpoint": "http://host/hf", "repository": "a/b", "commit": "main"},
    ],
)
def test_where_weights_may_lie(guarded: Site, at: dict[str, str], folder: Path) -> None:
    body = {"session": "x", "kind": "base", "files": [], "weights_absent": True, "weights_at": at}
    answer = guarded.client.post(f"/api/v1/repositories/{unique('ns')}/base/versions", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")


def test_the_token_goes_to_the_hub(guarded: Site, hub: Front, folder: Path) -> None:
    version = pinned(guarded, hub, folder)
    ensure(guarded, row(guarded, version))
    sent = [asked.get("authorization") for _, path, asked in hub.log if path.endswith(".safetensors")]
    assert sent
    assert set(sent) == {"Bearer hf_secret"}


def test_a_digest_gives_no_access_to_the_bytes_of_another_namespace(guarded: Site, hub: Front, folder: Path) -> None:
    """A base that claims the digests of another's weights, at a place that does not have them."""
    secret = unique("secret")
    assert push(guarded.client, secret, "base", "base", read_folder(folder)).status_code == 201
    at = {"endpoint": f"{hub.url}/hf", "repository": "acme/nothing", "commit": "0" * 40}
    claimed = pinned(guarded, hub, folder, weights_at=at)
    with pytest.raises(RegistryError) as raised:
        ensure(guarded, row(guarded, claimed))
    assert raised.value.code == "not-found"
    assert stored(guarded, row(guarded, claimed)) == {"config.json", "model.safetensors.index.json"}
    # In the namespace that has them everybody reads them: they are not fetched.
    hub.log.clear()
    near = pinned(guarded, hub, folder, namespace=secret + "x", weights_at=at)
    guarded.visibility(secret, "public")
    ensure(guarded, row(guarded, near))
    assert not ranges(hub)
    assert show(guarded, near)["weights_absent"] is False


def stored(site: Site, version: Version) -> set[str]:
    assert site.thread is not None
    with site.thread.context.db.read() as session:
        files = session.exec(select(VersionBlob).where(VersionBlob.version_id == version.id))
        return {file.path for file in files if file.stored}


def test_a_quota_refuses_before_a_byte_is_fetched(guarded: Site, hub: Front, folder: Path) -> None:
    version = pinned(guarded, hub, folder)
    quota = guarded.client.put(f"/api/v1/namespaces/{version['namespace']}/quota", json={"max_bytes": 1_000_000})
    assert quota.status_code == 200, quota.text
    with pytest.raises(RegistryError) as raised:
        ensure(guarded, row(guarded, version))
    assert raised.value.code == "quota"
    assert not ranges(hub)


def test_another_job_takes_over_only_what_lapsed(site: Site, hub: Front, absent: dict[str, Any]) -> None:
    """A killed worker leaves its lease: its own job goes on at once, another one when it has lapsed."""
    assert site.thread is not None
    version, database = row(site, absent), site.thread.context.db
    with database.write() as session:
        session.add(TaskLease(name=f"weights-{version.id}", holder="job-of-the-dead", expires_at=2**62, done_at=0))
    ensure(site, version, Job("job-of-the-dead"))
    assert show(site, absent)["weights_absent"] is False


Finish = Callable[[], None]


@pytest.mark.parametrize("work", ["merge", "validate"])
def test_a_job_whose_worker_is_killed_half_way_goes_on(
    work: str, tmp_path: Path, hub: Front, folder: Path, request: pytest.FixtureRequest
) -> None:
    once = tmp_path / "once"
    once.mkdir()
    extra = {"LORA_REG_LEASE_SECONDS": "2", "LORA_REG_FAULT_ONCE": str(once)}
    with opened("sqlite", tmp_path / "data", hub, request, **extra) as site:
        version = pinned(site, hub, folder)
        namespace = version["namespace"]
        draft = make_draft(fingerprint_of_files(read_folder(folder)), rank=2, seed=1).files()
        pushed = push(site.client, namespace, "one", "adapter", draft, base=f"{namespace}/base", accept_base=True)
        assert pushed.status_code == 201, pushed.text
        body: dict[str, Any] = {"adapters": [{"adapter": f"{namespace}/one"}], "to": f"{namespace}/merged"}
        if work == "validate":
            body = {"version": f"{namespace}/one"}
        asked = site.client.post("/api/v1/merges" if work == "merge" else "/api/v1/validations", json=body)
        assert asked.status_code in (200, 201, 202), asked.text
        dies = site.worker(fault="weights.part:2")
        assert dies.wait(timeout=60) == -9
        before = len(ranges(hub))
        hub.log.clear()
        site.worker()
        ended = site.until_job(asked.json()["id"])
        assert show(site, version)["weights_absent"] is False
        assert work == "validate" or ended["state"] == "done", ended
        assert 0 < len(ranges(hub)) < before + 3
        assert len(ranges(hub)) <= 3
