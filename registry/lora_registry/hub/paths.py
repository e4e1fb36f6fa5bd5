"""Parse the path of a request. Pure.

Read from the raw path, not by the framework's router, for two reasons: the router decodes `%2F` before it matches, so
the revision `feat%2Fx` of one file would become the revision `feat` of another; and repository ids have one part or
two, each under any channel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal
from urllib.parse import unquote

from lora_registry.hub.names import is_tag

Verb = Literal[
    "info",
    "tree",
    "paths-info",
    "refs",
    "commits",
    "auth-check",
    "file",
    "list",
    "whoami",
    "create-repo",
    "delete-repo",
    "check-card",
    "preupload",
    "commit",
    "tag",
    "branch",
    "xet",
    "lfs-batch",
    "lfs-verify",
    "lfs-send",
]
Kind = Literal["model", "dataset", "other"]
"""`other`: spaces and what else the Hub has."""

KINDS: Final[dict[str, Kind]] = {"models": "model", "datasets": "dataset", "spaces": "other", "kernels": "other"}

WITH_REVISION: Final[dict[str, Verb]] = {
    "revision": "info",
    "tree": "tree",
    "paths-info": "paths-info",
    "commits": "commits",
    "preupload": "preupload",
    "commit": "commit",
    "tag": "tag",
    "branch": "branch",
    "xet-write-token": "xet",
    "xet-read-token": "xet",
}
WITHOUT_REVISION: Final[dict[str, Verb]] = {"refs": "refs", "auth-check": "auth-check"}


@dataclass(frozen=True, slots=True)
class Call:
    """A request.

    repo: the id as requested, of one or two parts. revision: unquoted; `main` if the path has none; of `tag` and
    `branch` what the path has there. path: of a file or folder, '' for the root. paths: from the body. channel: the tag
    that replaces `main`. secret, digest, part: of a URL to send a file to; part 0: it is sent at once.
    """

    verb: Verb
    repo: str = ""
    revision: str = "main"
    path: str = ""
    paths: tuple[str, ...] = ()
    channel: str | None = None
    kind: Kind = "model"
    secret: str = ""
    digest: str = ""
    part: int = 0


def parse(raw: str) -> Call | None:
    """Parse the quoted path after `/hf/`. None if the dialect has no such path."""
    try:
        parts = [unquote(part, errors="strict") for part in raw.rstrip("/").split("/")]
    except UnicodeDecodeError:
        return None
    if "" in parts or any("\0" in part for part in parts):
        return None
    if parts[0] == "channels" and len(parts) > 2:
        found = _parse(parts[2:]) if is_tag(parts[1]) else None
        return found and replace(found, channel=parts[1])
    return _parse(parts)


def _parse(parts: list[str]) -> Call | None:
    match parts:
        case ["api", "whoami-v2"]:
            return Call("whoami")
        case ["api", "repos", "create"]:
            return Call("create-repo")
        case ["api", "repos", "delete"]:
            return Call("delete-repo")
        case ["api", "validate-yaml"]:
            return Call("check-card")
        case ["api", "lfs", secret, digest]:
            return Call("lfs-send", secret=secret, digest=digest)
        case ["api", "lfs", secret, digest, number] if number.isascii() and number.isdigit() and len(number) < 6:
            return Call("lfs-send", secret=secret, digest=digest, part=int(number))
        case ["api", kind] if kind in KINDS:
            return Call("list", kind=KINDS[kind])
        case ["api", kind, *rest] if kind in KINDS:
            found = _about(rest)
            return found and replace(found, kind=KINDS[kind])
        case ["api", *_]:
            return None
        case ["datasets", *rest] if (found := _files(rest)) is not None:
            return replace(found, kind="dataset")
    return _files(parts)


def _files(parts: list[str]) -> Call | None:
    """Parse what begins with an id: files, and the LFS protocol."""
    for length in (2, 1):
        if len(parts) > length + 2 and parts[length] == "resolve":
            path = "/".join(parts[length + 2 :])
            return Call("file", repo="/".join(parts[:length]), revision=parts[length + 1], path=path)
        repo = "/".join(parts[:length])
        if not repo.endswith(".git") or len(parts) <= length:
            continue
        if parts[length:] == ["info", "lfs", "objects", "batch"]:
            return Call("lfs-batch", repo=repo.removesuffix(".git"))
        if parts[length:] == ["info", "lfs", "verify"]:
            return Call("lfs-verify", repo=repo.removesuffix(".git"))
    return None


def _about(parts: list[str]) -> Call | None:
    """Parse what follows `api/models/`. If both readings are possible the longer id wins, except in `name/refs`."""
    for length in (2, 1):
        if len(parts) <= length:
            continue
        repo, word, rest = "/".join(parts[:length]), parts[length], parts[length + 1 :]
        if word in WITH_REVISION and rest:
            return Call(WITH_REVISION[word], repo=repo, revision=rest[0], path="/".join(rest[1:]))
        if word in WITHOUT_REVISION:
            return Call(WITHOUT_REVISION[word], repo=repo, path="/".join(rest))
    return Call("info", repo="/".join(parts)) if len(parts) <= 2 else None
