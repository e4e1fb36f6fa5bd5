"""The read side of a Hub: repositories, their files, and bytes by range.

Its token is sent to its own origin alone: files are often redirected to a store, which signs its URLs itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

import httpx2

from lora_contract import canonical
from lora_contract.errors import RegistryError
from lora_reg.config import check_server, read_token
from lora_reg.importing.items import SourceFile
from lora_reg.transport import Transport

DEFAULT: Final = "https://huggingface.co"
_MAX_ANSWER: Final = 64 << 20
_NEXT: Final = re.compile(r'<([^>]+)>;\s*rel="?next"?')
_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?\Z", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository at a commit. base: the base model that its card names."""

    id: str
    commit: str
    files: tuple[SourceFile, ...]
    base: str | None = None


class Hub:
    """A connection to a Hub."""

    def __init__(self, endpoint: str, token: str | None) -> None:
        self.endpoint = endpoint
        self.host = urlsplit(endpoint).netloc
        self.transport = Transport(endpoint, token)

    def close(self) -> None:
        self.transport.close()

    def repository(self, repo: str, revision: str | None) -> HubRepository:
        """Describe a repository at a revision; None: its default branch. Raises `not-found`, `unauthenticated`."""
        path = f"/api/models/{quote(repo)}" + (f"/revision/{quote(revision, safe='')}" if revision else "")
        what = f"hf://{repo}" + (f"@{revision}" if revision else "")
        document = self._json(path, {"blobs": "true"}, what)
        commit, siblings = document.get("sha"), document.get("siblings")
        if not isinstance(commit, str) or not isinstance(siblings, list):
            raise RegistryError("unavailable", f"The answer of {self.host} on {what} has no commit or no files.")
        files = tuple(_file(item) for item in siblings if isinstance(item, dict))
        return HubRepository(repo, commit, files, _base(document.get("cardData")))

    def list(self, *, author: str | None, base: str | None) -> Iterator[str]:
        """Ids of the repositories of an author, or of the adapters of a base, or both."""
        params: dict[str, str | int] = {"limit": 100}
        if author:
            params["author"] = author
        if base:
            params["filter"] = f"base_model:adapter:{base}"
        what = f"the repositories of {author}" if author else f"the adapters of {base}"
        url: str | None = self.transport.url("/api/models")
        while url is not None:
            response = self._request(url, params, what)
            document = _document(response, what)
            if not isinstance(document, list):
                raise RegistryError("unavailable", f"The answer of {self.host} on {what} is not a list.")
            for item in document:
                name = item.get("id") if isinstance(item, dict) else None
                if isinstance(name, str) and is_id(name):
                    yield name
            found = _NEXT.search(response.headers.get("link", ""))
            url, params = (urljoin(str(response.url), found[1]) if found else None), {}
            if url is not None and urlsplit(url).netloc != self.host:
                raise RegistryError("unavailable", f"{self.host} continues its list on {urlsplit(url).netloc}.")

    @contextmanager
    def open(
        self, repo: str, commit: str, path: str, start: int, end: int | None = None
    ) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Open a file from byte `start` to before `end`. Yields the offset at which it begins, and its bytes."""
        url = self.transport.url(f"/{quote(repo)}/resolve/{quote(commit, safe='')}/{quote(path)}")
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}
        try:
            with self.transport.stream("GET", url, headers=headers) as response:
                yield (start if response.status_code == 206 else 0), response.iter_bytes()
        except RegistryError as error:
            raise self._explained(error, f"{path} of hf://{repo}") from error

    def read(self, repo: str, commit: str, path: str, start: int, length: int) -> bytes:
        """Read a range of a file, and no more. Raises `unavailable` if the Hub ignores ranges."""
        if length == 0:
            return b""
        try:
            with self.open(repo, commit, path, start, start + length) as (offset, chunks):
                if offset != start:
                    raise RegistryError("unavailable", f"{self.host} sends {path} of hf://{repo} only as a whole.")
                data = bytearray()
                for chunk in chunks:
                    data += chunk
                    if len(data) > length:
                        raise RegistryError("unavailable", f"{self.host} sent more of {path} than was asked for.")
        except httpx2.RequestError as error:
            raise RegistryError(
                "unavailable", f"The connection to {self.host} broke: {type(error).__name__}."
            ) from error
        if len(data) != length:
            raise RegistryError("size-mismatch", f"{path} of hf://{repo}: received {len(data)} bytes of {length}.")
        return bytes(data)

    def _json(self, path: str, params: Mapping[str, str | int], what: str) -> dict[str, Any]:
        document = _document(self._request(self.transport.url(path), params, what), what)
        if not isinstance(document, dict):
            raise RegistryError("unavailable", f"The answer of {self.host} on {what} is not an object.")
        return document

    def _request(self, url: str, params: Mapping[str, str | int], what: str) -> httpx2.Response:
        try:
            return self.transport.request("GET", url, params=params or None)
        except RegistryError as error:
            raise self._explained(error, what) from error

    def _explained(self, error: RegistryError, what: str) -> RegistryError:
        """The error in words of the Hub, whose answers are no problem documents."""
        status = error.facts.get("status")
        if status in (401, 403):
            return RegistryError(
                "unauthenticated" if status == 401 else "forbidden",
                f"{self.host} does not show {what}: it is private or gated, or does not exist (status {status}).",
                hint="Set HF_TOKEN to a token that may read it, or give --source-token-file.",
            )
        if status == 404:
            return RegistryError(
                "not-found", f"{self.host} has no {what}.", hint="Check the spelling and the revision."
            )
        if status is not None:
            return RegistryError(error.code, f"{self.host} answered {status} on {what}.", hint="Try again later.")
        return error


def connect(endpoint: str | None, token_file: str | None) -> Hub:
    """Connect to the Hub that an option or HF_ENDPOINT names.

    HF_TOKEN goes to the host that HF_ENDPOINT names, and the token of `hf auth login` to huggingface.co; an endpoint
    given as an option gets neither, unless it is that host.
    """
    configured = check_server(os.environ.get("HF_ENDPOINT", "").strip() or DEFAULT)
    url = check_server(endpoint) if endpoint else configured
    if token_file is not None:
        return Hub(url, read_token(Path(token_file).expanduser()))
    token = None
    if _origin(url) == _origin(configured):
        token = os.environ.get("HF_TOKEN", "").strip() or None
    if token is None and _origin(url) == _origin(DEFAULT):
        token = _stored()
    return Hub(url, token)


def is_id(text: str) -> bool:
    """Whether a text may be the id of a Hub's repository."""
    return _ID.match(text) is not None and ".." not in text


def check_id(text: str) -> str:
    """Check the id of a Hub's repository. Raises RegistryError `usage`."""
    if not is_id(text):
        raise RegistryError("usage", f"{text[:200]!r} is not a repository of a Hub; expected hf://ORG/NAME[@REVISION].")
    return text


def _stored() -> str | None:
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    try:
        return Path(os.environ.get("HF_TOKEN_PATH") or home / "token").read_text("utf-8").strip() or None
    except (OSError, ValueError):
        return None


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _document(response: httpx2.Response, what: str) -> Any:
    return canonical.loads_strict(response.content, what=f"The answer on {what}", max_bytes=_MAX_ANSWER)


def _base(card: Any) -> str | None:
    found = card.get("base_model") if isinstance(card, dict) else None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    return found if isinstance(found, str) else None


def _file(item: Mapping[str, Any]) -> SourceFile:
    lfs = item.get("lfs")
    found = (lfs.get("sha256") or lfs.get("oid")) if isinstance(lfs, dict) else None
    sha256 = found if isinstance(found, str) and _SHA256.match(found) else None
    size = lfs.get("size", item.get("size")) if isinstance(lfs, dict) else item.get("size")
    mark = item.get("blobId")
    return SourceFile(
        str(item.get("rfilename", "")),
        size if isinstance(size, int) else None,
        sha256,
        mark if isinstance(mark, str) else "",
    )
