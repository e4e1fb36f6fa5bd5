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

Verb = Literal["info", "tree", "paths-info", "refs", "commits", "auth-check", "file", "list", "whoami", "other-kind"]

WITH_REVISION: Final[dict[str, Verb]] = {
    "revision": "info",
    "tree": "tree",
    "paths-info": "paths-info",
    "commits": "commits",
}
WITHOUT_REVISION: Final[dict[str, Verb]] = {"refs": "refs", "auth-check": "auth-check"}


@dataclass(frozen=True, slots=True)
class Call:
    """A request.

    repo: the id as requested, of one or two parts. revision: unquoted; `main` if the path has none. path: of a file or
    folder, '' for the root. paths: from the body. channel: the tag that replaces `main`."""

    verb: Verb
    repo: str = ""
    revision: str = "main"
    path: str = ""
    paths: tuple[str, ...] = ()
    channel: str | None = None


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
        case ["api", "models"]:
            return Call("list")
        case ["api", "models", *rest]:
            return _about(rest)
        case ["api", "datasets" | "spaces" | "kernels", _, *_]:
            return Call("other-kind", repo="/".join(parts[2:4]))
        case ["api", *_]:
            return None
    for length in (2, 1):
        if len(parts) > length + 2 and parts[length] == "resolve":
            path = "/".join(parts[length + 2 :])
            return Call("file", repo="/".join(parts[:length]), revision=parts[length + 1], path=path)
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
