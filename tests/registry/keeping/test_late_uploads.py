"""Race (f) of collections and pushes: a presigned request that arrives after its upload session was removed, on S3."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from lora_registry.keeping import tasks
from lora_registry.push import sessions
from tests.registry.keeping.shelves import Bucket, Shelf, shelved
from tests.registry.site import SHARED, Site, adapter_files, problem, unique
from tests.support.push import describe, push
from tests.support.s3 import BUCKET, S3Server

PART = 5 << 20


@pytest.fixture(scope="module")
def kept(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str, ministack_server: S3Server
) -> Iterator[tuple[Site, Shelf]]:
    extra = {"LORA_REG_UPLOAD_PART_BYTES": str(PART)}
    with shelved("postgresql-s3", tmp_path_factory.mktemp("late"), postgres_server, ministack_server, **extra) as made:
        yield made


def opened(site: Site, files: dict[str, bytes]) -> dict[str, Any]:
    body = {"namespace": "ns", "name": unique("late"), "kind": "adapter", "files": describe(files)}
    session: dict[str, Any] = site.client.post("/api/v1/uploads", json=body).json()
    return session


def expire(site: Site, session: str) -> None:
    """As the service does it when the lifetime of a session is over."""
    engine = sa.create_engine(site.database)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE upload_session SET expires_at = 1 WHERE id = :id"), {"id": session})
    engine.dispose()
    assert site.thread is not None
    assert sessions.sweep(site.thread.context) == 1


def sweep(site: Site) -> None:
    """What housekeeping does, an hour after the lifetime of the upload."""
    assert site.thread is not None
    tasks.collect_garbage(site.thread.context, grace=0)
    site.thread.context.blobs.sweep(older_than=-60)


def unfinished(shelf: Shelf) -> list[str]:
    assert isinstance(shelf, Bucket)
    prefix = shelf.prefix.partition("/blobs/")[0] + "/uploads/"
    found = shelf.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    multipart = shelf.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return [item["Key"] for item in [*found.get("Contents", []), *multipart] if item["Key"].startswith(prefix)]


def test_f_a_put_that_lands_after_its_session_went_is_no_blob(kept: tuple[Site, Shelf]) -> None:
    site, shelf = kept
    files = {**adapter_files(1), "README.md": unique("late").encode()}
    session = opened(site, files)
    bodies = {item["digest"]: data for item, data in zip(describe(files), files.values(), strict=True)}
    targets = [blob for blob in session["blobs"] if blob["state"] == "needed"]
    assert targets
    expire(site, session["id"])
    before = shelf.objects()
    for blob in targets:
        sent = httpx.request(blob["method"], blob["url"], content=bodies[blob["digest"]], headers=blob["headers"])
        assert sent.status_code == 200
        own = f"/api/v1/uploads/{session['id']}/blobs/{blob['digest']}"
        problem(site.client.post(own + "/complete"), "not-found")
    name = unique("late")
    body = {"session": session["id"], "kind": "adapter", "files": describe(files), "base": f"{SHARED}/base"}
    problem(site.client.post(f"/api/v1/repositories/ns/{name}/versions", json=body), "not-found")
    assert shelf.objects() == before
    assert len(unfinished(shelf)) == len(targets)
    sweep(site)
    assert unfinished(shelf) == []
    assert push(site.client, "ns", name, "adapter", files, base=f"{SHARED}/base").status_code == 201
    for path, data in files.items():
        answer = site.client.get(f"/api/v1/repositories/ns/{name}/versions/v1/files/{path}", follow_redirects=True)
        assert answer.content == data


def test_f_a_part_that_lands_after_its_session_went_is_no_blob(kept: tuple[Site, Shelf]) -> None:
    site, shelf = kept
    data = os.urandom(PART + 100)
    session = opened(site, {"README.md": data})
    (blob,) = session["blobs"]
    own = f"/api/v1/uploads/{session['id']}/blobs/{blob['digest']}"
    pieces = {1: data[:PART], 2: data[PART:]}
    asked = [{"number": n, "digest": f"sha256:{hashlib.sha256(piece).hexdigest()}"} for n, piece in pieces.items()]
    first, second = site.client.post(own + "/parts", json={"parts": asked}).json()["parts"]
    assert httpx.request(first["method"], first["url"], content=pieces[1], headers=first["headers"]).status_code == 200
    assert unfinished(shelf)
    before = shelf.objects()
    expire(site, session["id"])
    assert unfinished(shelf) == []
    assert httpx.request(second["method"], second["url"], content=pieces[2], headers=second["headers"]).is_success
    problem(site.client.post(own + "/complete"), "not-found")
    assert shelf.objects() == before
    assert len(unfinished(shelf)) == 1
    sweep(site)
    assert unfinished(shelf) == []
    assert shelf.objects() == before
