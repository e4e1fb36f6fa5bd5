"""A push by raw HTTP, as a client that checks nothing would send it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.support.adapters import read_folder


def describe(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """The files as a request announces them."""
    return [
        {"path": path, "size": len(data), "digest": f"sha256:{hashlib.sha256(data).hexdigest()}"}
        for path, data in files.items()
    ]


def upload(client: httpx.Client, namespace: str, name: str, kind: str, files: Mapping[str, bytes]) -> httpx.Response:
    """Open a session and send what it needs. The answer: the session's (201), or the first that refused."""
    opened = client.post(
        "/api/v1/uploads", json={"namespace": namespace, "name": name, "kind": kind, "files": describe(files)}
    )
    if opened.status_code != 201:
        return opened
    bodies = {item["digest"]: data for item, data in zip(describe(files), files.values(), strict=True)}
    session = opened.json()
    for blob in session["blobs"]:
        if blob["state"] != "needed":
            continue
        data, own = bodies[blob["digest"]], f"/api/v1/uploads/{session['id']}/blobs/{blob['digest']}"
        if blob.get("url"):
            # Straight to the store, without our token.
            to = (blob["method"], blob["url"])
            httpx.request(*to, content=data, headers=blob["headers"], timeout=client.timeout).raise_for_status()
            while (sent := client.post(own + "/complete")).status_code == 202:
                pass  # the bytes are still being checked
        else:
            sent = client.put(own, content=data)
        if sent.status_code != 204:
            return sent
    return opened


def push(
    client: httpx.Client, namespace: str, name: str, kind: str, files: Mapping[str, bytes], **commit: Any
) -> httpx.Response:
    """Upload and commit. The answer of the commit, or of the step that refused before it."""
    opened = upload(client, namespace, name, kind, files)
    if opened.status_code != 201:
        return opened
    body = {"session": opened.json()["id"], "kind": kind, "files": describe(files), **commit}
    return client.post(f"/api/v1/repositories/{namespace}/{name}/versions", json=body)


def push_folder(
    client: httpx.Client, namespace: str, name: str, kind: str, folder: Path, **commit: Any
) -> httpx.Response:
    """The same for all files of a folder."""
    return push(client, namespace, name, kind, read_folder(folder), **commit)
