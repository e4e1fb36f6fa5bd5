"""A flipped bit and a lost blob, per store and dialect: found, marked, told, and repaired by the next push."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lora_registry.context import Context
from lora_registry.keeping import reading
from tests.registry.keeping.shelves import Shelf, flipped, sha256, shelved
from tests.registry.site import SHARED, Site, adapter_files, base_files, problem, unique
from tests.support.push import describe, push, upload

WEIGHTS = "adapter_model.safetensors"
LONG = 3 << 20


@pytest.fixture(scope="module", params=["sqlite-folder", "postgresql-s3"])
def kept(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_server: str
) -> Iterator[tuple[Site, Shelf]]:
    s3 = request.getfixturevalue("ministack_server") if request.param.endswith("s3") else None
    extra = (
        {"LORA_REG_VERIFIED_SECONDS": "0"} if s3 else {}
    )  # Hub clients get all bytes from the service, not the store
    with shelved(request.param, tmp_path_factory.mktemp("kept"), postgres_server, s3, **extra) as made:
        yield made


def pushed(site: Site, files: dict[str, bytes], name: str, **commit: Any) -> httpx.Response:
    return push(site.client, "ns", name, "adapter", files, base=f"{SHARED}/base", **commit)


def long_files(seed: int) -> dict[str, bytes]:
    """An adapter with a file that is too long to be verified before it is sent."""
    return {**adapter_files(seed), "README.md": (f"{seed}\n" * LONG)[:LONG].encode()}


def get(site: Site, name: str, path: str, dialect: str, **headers: str) -> httpx.Response:
    url = f"/api/v1/repositories/ns/{name}/versions/v1/files/{path}"
    if dialect == "hub":
        url = f"/hf/ns/{name}/resolve/v1/{path}"
    return site.client.get(url, headers=headers, follow_redirects=False)


def kinds(site: Site, name: str) -> list[str]:
    return [event["kind"] for event in site.events(f"ns/{name}") if event["kind"].startswith("blob-")]


@pytest.mark.parametrize("dialect", ["native", "hub"])
def test_a_flipped_bit_of_a_small_file_is_no_answer(kept: tuple[Site, Shelf], dialect: str) -> None:
    site, shelf = kept
    name, files = unique("flipped"), adapter_files(len(dialect) + 100)
    assert pushed(site, files, name).status_code == 201
    data = files[WEIGHTS]
    if get(site, name, WEIGHTS, dialect).status_code != 200:
        pytest.skip("the store itself serves it, to clients that compare digests")
    shelf.write(data, flipped(data))
    for _ in range(2):
        answer = get(site, name, WEIGHTS, dialect)
        assert (answer.status_code, "corrupt" in answer.text) == (500, True)
        assert data[:100] not in answer.content
    assert site.client.head(f"/api/v1/repositories/ns/{name}/versions/v1/files/{WEIGHTS}").status_code == 500
    assert site.client.head(f"/hf/ns/{name}/resolve/v1/{WEIGHTS}").status_code == 500
    assert get(site, name, "adapter_config.json", dialect).status_code == 200
    repair(site, shelf, name, files, data)


def repair(site: Site, shelf: Shelf, name: str, files: dict[str, bytes], data: bytes) -> None:
    """Push the same files again: the damaged one alone is needed, and is right afterwards."""
    problem(site.client.put(f"/api/v1/repositories/ns/{name}/tags/prod", json={"target": "v1"}), "corrupt")
    session = upload(site.client, "ns", name, "adapter", files).json()
    states = {blob["digest"]: blob["state"] for blob in session["blobs"]}
    assert states == {
        item["digest"]: "needed" if item["digest"] == f"sha256:{sha256(data)}" else "present"
        for item in describe(files)
    }
    assert shelf.read(data) == data
    again = site.client.post(
        f"/api/v1/repositories/ns/{name}/versions",
        json={"session": session["id"], "kind": "adapter", "files": describe(files), "base": f"{SHARED}/base"},
    )
    assert (again.status_code, again.json()["created"]) == (200, False)
    for dialect in ("native", "hub"):
        assert get(site, name, WEIGHTS, dialect).status_code in (200, 302, 307)
    assert site.client.put(f"/api/v1/repositories/ns/{name}/tags/prod", json={"target": "v1"}).status_code == 200
    assert kinds(site, name)[-1] == "blob-repaired"
    assert set(kinds(site, name)[:-1]) <= {"blob-damaged", "blob-missing"}
    assert len(kinds(site, name)) == 2


@pytest.mark.parametrize("dialect", ["native", "hub"])
def test_a_long_file_of_wrong_bytes_is_cut_and_then_refused(kept: tuple[Site, Shelf], dialect: str) -> None:
    site, shelf = kept
    name, files = unique("long"), long_files(len(dialect) + 200)
    assert pushed(site, files, name).status_code == 201
    data = files["README.md"]
    if get(site, name, "README.md", dialect).status_code != 200:
        pytest.skip("the store itself serves it, to clients that compare digests")
    shelf.write(data, flipped(data, at=1000))
    with pytest.raises(httpx.RemoteProtocolError):
        get(site, name, "README.md", dialect)
    # Neither the whole file nor its end: a client that resumes must not complete it.
    assert get(site, name, "README.md", dialect).status_code == 500
    assert get(site, name, "README.md", dialect, Range=f"bytes={LONG - 262144}-").status_code == 500
    assert kinds(site, name) == ["blob-damaged"]


@pytest.mark.parametrize("cut", [None, 1000])
@pytest.mark.parametrize("path", [WEIGHTS, "README.md"])
def test_a_lost_or_short_blob_is_found_before_the_status_line(
    kept: tuple[Site, Shelf], path: str, cut: int | None
) -> None:
    site, shelf = kept
    name, files = unique("lost"), long_files(300 + len(path) + (cut or 0))
    assert pushed(site, files, name).status_code == 201
    data = files[path]
    shelf.write(data, None if cut is None else data[:cut])
    for dialect in ("native", "hub"):
        assert get(site, name, path, dialect).status_code == 500
        url = (
            f"/hf/ns/{name}/resolve/v1/{path}"
            if dialect == "hub"
            else f"/api/v1/repositories/ns/{name}/versions/v1/files/{path}"
        )
        assert site.client.head(url).status_code == 500
    assert kinds(site, name) == ["blob-missing" if cut is None else "blob-damaged"]
    assert pushed(site, files, name).status_code == 200
    assert shelf.read(data) == data


def test_bytes_that_vanish_before_the_commit_are_sent_again(kept: tuple[Site, Shelf]) -> None:
    """They were compared with their digest on arrival, so the commit does not read them before it checks them."""
    site, shelf = kept
    name, files = unique("vanished"), adapter_files(450)
    session = upload(site.client, "ns", name, "adapter", files).json()
    shelf.write(files[WEIGHTS], None)
    body = {"session": session["id"], "kind": "adapter", "files": describe(files), "base": f"{SHARED}/base"}
    problem(site.client.post(f"/api/v1/repositories/ns/{name}/versions", json=body), "corrupt")
    assert pushed(site, files, name).status_code == 201
    assert shelf.read(files[WEIGHTS]) == files[WEIGHTS]


def test_a_purge_that_overtakes_a_commit_is_no_damage(
    kept: tuple[Site, Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session was told that it need not send the bytes, and they were purged while the commit began."""
    site, _ = kept
    name, purged, files = unique("overtaken"), unique("purged"), adapter_files(470)
    assert pushed(site, files, purged).status_code == 201
    session = upload(site.client, "ns", name, "adapter", files).json()
    verify = reading.verify

    def overtaken(ctx: Context, content: reading.Content) -> None:
        monkeypatch.setattr(reading, "verify", verify)
        url = f"/api/v1/repositories/ns/{purged}/versions/v1"
        with site.connect() as other:
            assert other.delete(url, params={"purge": "true", "reason": "a secret"}).status_code == 204
        verify(ctx, content)

    monkeypatch.setattr(reading, "verify", overtaken)
    body = {"session": session["id"], "kind": "adapter", "files": describe(files), "base": f"{SHARED}/base"}
    said = problem(site.client.post(f"/api/v1/repositories/ns/{name}/versions", json=body), "conflict")
    assert "Push again" in said["hint"]
    assert kinds(site, purged) == []
    assert pushed(site, files, name).status_code == 201


@pytest.mark.parametrize("bit", [0, 7], ids=["low-bit", "high-bit"])
def test_a_sound_adapter_is_not_blamed_for_the_store(kept: tuple[Site, Shelf], bit: int) -> None:
    """Nobody has read the damaged bytes yet: the session takes them for present, the commit finds them."""
    site, shelf = kept
    name, files = unique("blamed"), adapter_files(400 + bit)
    assert pushed(site, files, name).status_code == 201
    data = files[WEIGHTS]
    shelf.write(data, flipped(data, at=-1, bit=bit))
    other = unique("other")
    opened = upload(site.client, "ns", other, "adapter", files).json()
    assert {blob["state"] for blob in opened["blobs"]} == {"present"}
    commit = {"session": opened["id"], "kind": "adapter", "files": describe(files), "base": f"{SHARED}/base"}
    problem(site.client.post(f"/api/v1/repositories/ns/{other}/versions", json=commit), "corrupt")
    assert site.client.get(f"/api/v1/repositories/ns/{other}").status_code == 404
    # The same session asks for it now.
    shown = site.client.get(f"/api/v1/uploads/{opened['id']}").json()
    assert [blob["state"] for blob in shown["blobs"]].count("needed") == 1
    assert pushed(site, files, other).status_code == 201
    assert shelf.read(data) == data
    assert kinds(site, name) == ["blob-damaged", "blob-repaired"]


def test_a_damaged_base_is_not_blamed_on_an_adapter_either(kept: tuple[Site, Shelf]) -> None:
    site, shelf = kept
    files = {**base_files(), "README.md": unique("base").encode()}
    name = unique("base")
    assert push(site.client, "ns", name, "base", files).status_code == 201
    shard = files["model-00001-of-00002.safetensors"]
    shelf.write(shard, flipped(shard))
    try:
        problem(push(site.client, "ns", unique("base"), "base", {**files, "README.md": b"x"}), "corrupt")
    finally:
        assert push(site.client, "ns", name, "base", files).status_code == 200
    assert shelf.read(shard) == shard
