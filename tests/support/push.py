"""A push by bare HTTP requests: the API as anybody may call it, without our client."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx


def push_folder(
    client: httpx.Client, namespace: str, name: str, kind: str, folder: Path, **commit_fields: Any
) -> httpx.Response:
    """Push the files of a folder; returns the answer to the commit, or the first one that is an error."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return push(client, namespace, name, kind, files, **commit_fields)


def push(
    client: httpx.Client, namespace: str, name: str, kind: str, files: Mapping[str, bytes], **commit_fields: Any
) -> httpx.Response:
    """The same for files in memory."""
    contents = {"sha256:" + hashlib.sha256(content).hexdigest(): content for content in files.values()}
    specs = [
        {"path": path, "size": len(content), "digest": "sha256:" + hashlib.sha256(content).hexdigest()}
        for path, content in sorted(files.items())
    ]
    wanted = {"namespace": namespace, "name": name, "kind": kind, "files": specs}
    opened = client.post("/api/v1/uploads", json=wanted)
    if opened.is_error:
        return opened
    session = opened.json()
    for blob in session["blobs"]:
        if blob["state"] != "needed":
            continue
        content, own = contents[blob["digest"]], f"/api/v1/uploads/{session['id']}/blobs/{blob['digest']}"
        if blob.get("url"):
            # Straight to the store, without our token.
            httpx.request(blob["method"], blob["url"], content=content, headers=blob["headers"]).raise_for_status()
            sent = client.post(own + "/complete")
        else:
            sent = client.put(own, content=content)
        if sent.is_error:
            return sent
    return client.post(
        f"/api/v1/repositories/{namespace}/{name}/versions",
        json={"session": session["id"], "kind": kind, "files": specs, **commit_fields},
    )
