"""What Hub clients stage: kept, counted, expired, and committed by one of several; on both databases."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import sqlalchemy as sa

from lora_contract.digest import Digest
from lora_registry.context import Context
from lora_registry.hub import heads
from lora_registry.keeping import references
from lora_registry.wiring import open_context
from tests.registry.site import SHARED, Site, adapter_files, unique


def create(site: Site, namespace: str, name: str, **options: object) -> httpx.Response:
    return site.client.post("/hf/api/repos/create", json={"name": name, "organization": namespace, **options})


def commit(
    site: Site, repo: str, files: Mapping[str, bytes], message: str = "x", branch: str = "main"
) -> httpx.Response:
    lines: list[dict[str, object]] = [{"key": "header", "value": {"summary": message}}]
    for path, data in files.items():
        content = base64.b64encode(data).decode()
        lines.append({"key": "file", "value": {"content": content, "path": path, "encoding": "base64"}})
    body = "\n".join(map(json.dumps, lines))
    return site.client.post(f"/hf/api/models/{repo}/commit/{branch}", content=body)


def files_of(site: Site, repo: str) -> list[str]:
    found = site.client.get(f"/hf/api/models/{repo}").json()
    return sorted(file["rfilename"] for file in found["siblings"])


def hub_files(seed: int) -> dict[str, bytes]:
    """An adapter whose config names the shared base, and not what a trainer called it."""
    return adapter_files(seed, base_model_name_or_path=f"{SHARED}/base")


@contextmanager
def context(site: Site) -> Iterator[Context]:
    ctx = open_context(site.config())
    try:
        yield ctx
    finally:
        ctx.jobs.close()
        ctx.db.engine.dispose()


def test_staged_bytes_are_kept_until_they_expire(site: Site) -> None:
    namespace, name = unique("kept"), unique("a")
    repo, data = f"{namespace}/{name}", unique("bytes").encode()
    assert create(site, namespace, name).status_code == 200
    assert commit(site, repo, {"README.md": data}).status_code == 200
    digest = str(Digest.of(data))
    with context(site) as ctx:
        with ctx.db.read() as session:
            assert references.referenced(session, [digest]) == {digest}
        assert site.client.get(f"/hf/{repo}/resolve/main/README.md").content == data
        heads.sweep(ctx)
        assert files_of(site, repo) == ["README.md"]
        with ctx.db.write() as session:
            session.execute(sa.text("UPDATE staging SET expires_at = 1 WHERE name = :name"), {"name": name})
            session.execute(sa.text("UPDATE upload_session SET expires_at = 1 WHERE name = :name"), {"name": name})
        with ctx.db.read() as session:
            assert references.referenced(session, [digest]) == set()
        assert site.client.get(f"/hf/api/models/{repo}").status_code == 404
        # The name is free again, also before the sweep.
        assert create(site, namespace, name).status_code == 200
        assert files_of(site, repo) == []
        with ctx.db.write() as session:
            session.execute(sa.text("UPDATE staging SET expires_at = 1 WHERE name = :name"), {"name": name})
        assert heads.sweep(ctx) >= 1


def test_staged_bytes_count_for_the_quota(site: Site) -> None:
    namespace, name = unique("full"), unique("a")
    repo = f"{namespace}/{name}"
    assert create(site, namespace, name).status_code == 200
    root = f"/api/v1/namespaces/{namespace}/quota"
    assert site.client.put(root, json={"max_bytes": 1000}).status_code == 200
    assert commit(site, repo, {"a.txt": b"a" * 600}).status_code == 200
    refused = commit(site, repo, {"b.txt": b"b" * 600})
    assert (refused.status_code, refused.headers["x-error-code"]) == (403, "quota")
    assert files_of(site, repo) == ["a.txt"]
    assert commit(site, repo, {"a.txt": b"c" * 300}).status_code == 200
    assert commit(site, repo, {"b.txt": b"b" * 600}).status_code == 200


def test_of_commits_at_the_same_time_none_is_lost(site: Site) -> None:
    namespace, name = unique("race"), unique("a")
    repo, adapter = f"{namespace}/{name}", hub_files(71)
    assert create(site, namespace, name).status_code == 200
    pieces = [{path: data} for path, data in adapter.items()] + [{f"{n}.txt": b"%d" % n} for n in range(4)]
    with ThreadPoolExecutor(len(pieces)) as pool:
        answers = list(pool.map(lambda files: commit(site, repo, files), pieces))
    assert {answer.status_code for answer in answers} <= {200, 503}, [answer.text for answer in answers]
    for files, answer in zip(pieces, answers, strict=True):
        if answer.status_code == 503:  # overtaken again and again: the client is told to repeat it
            assert commit(site, repo, files).status_code == 200
    assert files_of(site, repo) == sorted([*adapter, *(f"{n}.txt" for n in range(4))])
    versions = site.client.get(f"/api/v1/repositories/{repo}/versions").json()["items"]
    assert [item["number"] for item in versions] == list(range(len(versions), 0, -1))


def test_a_native_push_and_a_hub_commit_share_a_repository(site: Site) -> None:
    namespace, name = unique("both"), unique("a")
    repo = f"{namespace}/{name}"
    assert create(site, namespace, name).status_code == 200
    assert commit(site, repo, {"README.md": b"# Card"}).status_code == 200
    first = site.pushed(namespace, name, 72)
    assert files_of(site, repo) == sorted(file["path"] for file in first["files"])
    # What was staged before goes on top of what is the newest now.
    done = commit(site, repo, {"more.txt": b"x"})
    assert done.status_code == 200, done.text
    assert {"README.md", "more.txt"} < set(files_of(site, repo))
    assert site.client.get(f"/api/v1/repositories/{repo}").json()["versions"] == 2


def test_a_repository_is_no_more_private_than_its_namespace(site: Site) -> None:
    namespace = unique("open")
    site.visibility(namespace, "internal")
    refused = create(site, namespace, "a", private=True)
    assert refused.status_code == 400
    assert f"everything in {namespace} is internal" in refused.headers["x-error-message"]
    assert create(site, namespace, "a", visibility="private").status_code == 400
    assert create(site, namespace, "a", private=False).status_code == 200
