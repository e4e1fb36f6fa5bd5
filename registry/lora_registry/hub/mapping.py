"""Convert our structs to the Hub's JSON and headers. Pure.

Every file is described as an LFS file: its ETag and its `lfs` are the sha256 that we store, and its `oid` is the git
object id of the LFS pointer that git would store in its place. So all of them are correct, and clients that verify a
download compare the sha256 of every file, even small ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from lora_contract.digest import Digest
from lora_contract.roles import ALL
from lora_contract.wire.repositories import RepositoryView, VersionFile, VersionView
from lora_registry.auth.principals import Principal
from lora_registry.hub import errors
from lora_registry.hub.revisions import RevisionInfo

Json = dict[str, Any]

LIBRARY = {"adapter": "peft", "base": "transformers", "model": "transformers"}
"""By kind; a repository without a version is a `model` until it is known."""


def item(repo: RepositoryView, *, private: bool, bases: Sequence[str]) -> Json:
    """Encode a repository as a list item. bases: names of the base that its newest version pins."""
    info = _info(f"{repo.namespace}/{repo.name}", repo.namespace, repo.kind, repo.created_at, private)
    return info | {"tags": tags_of(repo.kind, bases)}


def model_info(repo_id: str, version: RevisionInfo, *, blobs: bool) -> Json:
    """Encode a version as a model or dataset. repo_id: as requested, so that clients keep using an alias.

    blobs: include size and sha256 of each file.
    """
    info = _info(repo_id, version.namespace, version.kind, version.repository_created_at, version.private)
    info["tags"] = tags_of(version.kind, version.bases)
    card: Json = {"tags": info["tags"]}
    if "library_name" in info:
        card["library_name"] = info["library_name"]
    if version.bases:
        card["base_model"] = version.bases[0]
    return info | {
        "sha": version.commit,
        "lastModified": version.created_at,
        "cardData": card,
        "usedStorage": version.size,
        "siblings": [_sibling(file, blobs) for file in version.files],
    }


def tags_of(kind: str, bases: Sequence[str]) -> list[str]:
    """Return the tags that a list's `filter=` matches against. bases: all names of the base: trainers write aliases."""
    relation = "adapter" if kind == "adapter" else "merge"
    tags = [kind, *([LIBRARY[kind]] if kind in LIBRARY else [])]
    for name in bases:
        tags += [f"base_model:{name}", f"base_model:{relation}:{name}"]
    return tags


def tree(files: Sequence[VersionFile], *, path: str, recursive: bool) -> list[Json] | None:
    """List files and folders under a folder ('' for the root), by path. None if the folder does not exist."""
    prefix = f"{path}/" if path else ""
    below = [file for file in files if file.path.startswith(prefix)]
    if path and not below:
        return None
    entries: dict[str, Json] = {}
    for file in below:
        parts = file.path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = prefix + "/".join(parts[:depth])
            entries.setdefault(folder, _folder(folder, files))
        if recursive or len(parts) == 1:
            entries[file.path] = _file(file)
    return [entries[name] for name in sorted(entries)]


def paths_info(files: Sequence[VersionFile], paths: Iterable[str]) -> list[Json]:
    """List the files and folders at these paths, in this order; unknown paths are skipped."""
    known = {file.path: file for file in files}
    result = []
    for path in dict.fromkeys(path.strip("/") for path in paths):
        if path in known:
            result.append(_file(known[path]))
        elif any(file.path.startswith(path + "/") for file in files):
            result.append(_folder(path, files))
    return result


def refs(heads: Iterable[tuple[str, str]], tagged: Iterable[tuple[str, str]], *, pull_requests: bool) -> Json:
    branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in heads]
    tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit} for name, commit in tagged]
    result: Json = {"branches": branches, "converts": [], "tags": tags}
    return result | {"pullRequests": []} if pull_requests else result


def commit(version: VersionView) -> Json:
    title, _, message = version.message.partition("\n")
    return {
        "id": version.commit,
        "title": f"v{version.number}: {title}" if title else f"v{version.number}",
        "message": message.strip(),
        "date": version.created_at,
        "authors": [{"user": version.author}],
    }


def whoami(principal: Principal) -> Json:
    role = "read" if principal.highest_role() == "reader" else "write"
    orgs = [{"name": grant.pattern} for grant in principal.grants if ALL not in grant.pattern]
    token = {"displayName": principal.name, "role": role}
    return {
        "type": "user",
        "name": principal.name,
        "fullname": principal.name,
        "orgs": orgs,
        "auth": {"type": "access_token", "accessToken": token},
    }


def file_headers(*, commit: str, digest: Digest, size: int, yanked: str | None) -> dict[str, str]:
    """Headers with the version, the file's name in the client's cache, and its size."""
    return {
        "X-Repo-Commit": commit,
        "X-Linked-Etag": f'"{digest.hex}"',
        "X-Linked-Size": str(size),
        **warning(yanked),
    }


def warning(yanked: str | None) -> dict[str, str]:
    """Clients print it once per topic, the part before the semicolon."""
    return {} if yanked is None else {"X-HF-Warning": "yanked; " + errors.header_text(yanked or "no reason given")}


def _info(repo_id: str, author: str, kind: str, created_at: str, private: bool) -> Json:
    info: Json = {
        "id": repo_id,
        "author": author,
        "private": private,
        "gated": False,
        "disabled": False,
        "tags": tags_of(kind, ()),
        "createdAt": created_at,
    }
    return info if kind == "dataset" else info | {"modelId": repo_id, "library_name": LIBRARY[kind]}


def _sibling(file: VersionFile, blobs: bool) -> Json:
    if not blobs:
        return {"rfilename": file.path}
    pointer = _pointer(file)
    lfs = {"sha256": Digest.parse(file.digest).hex, "size": file.size, "pointerSize": len(pointer)}
    return {"rfilename": file.path, "size": file.size, "blobId": _git_id(pointer), "lfs": lfs}


def _file(file: VersionFile) -> Json:
    pointer = _pointer(file)
    lfs = {"oid": Digest.parse(file.digest).hex, "size": file.size, "pointerSize": len(pointer)}
    return {"type": "file", "path": file.path, "size": file.size, "oid": _git_id(pointer), "lfs": lfs}


def _folder(path: str, files: Sequence[VersionFile]) -> Json:
    """A folder's oid is not a git object id: clients only need it to change with the content."""
    content = "".join(f"{file.path}\0{file.digest}\n" for file in files if file.path.startswith(path + "/"))
    return {"type": "directory", "path": path, "size": 0, "oid": _git_id(content.encode())}


def _pointer(file: VersionFile) -> bytes:
    """https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""
    return f"version https://git-lfs.github.com/spec/v1\noid {file.digest}\nsize {file.size}\n".encode()


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
