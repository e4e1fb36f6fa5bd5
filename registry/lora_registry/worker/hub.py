"""Read ranges of files of a Hub. The worker does it itself: children of jobs have no network.

The token is sent to the Hub's own origin alone. The Hub redirects to a store by signed URLs, so no URL is ever part of
an error.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote, urljoin, urlsplit

import httpx2

from lora_contract.errors import RegistryError
from lora_registry.db.tables import WeightSource

SECONDS: Final = 60.0
"""Without a byte."""
MAX_REDIRECTS: Final = 5
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


class HubFiles:
    """The files of a repository of a Hub at a commit. Thread-safe. token: sent to the Hub, never to its store."""

    def __init__(self, source: WeightSource, token: str | None) -> None:
        self._source = source
        self._token = token
        self.name = f"hf://{source.repository}@{source.commit_id[:12]}"
        self.host = urlsplit(source.endpoint).netloc
        # Loopback never goes through a proxy.
        mounts: dict[str, httpx2.BaseTransport | None] = {f"all://{host}": None for host in _LOOPBACK}
        self._client = httpx2.Client(timeout=SECONDS, follow_redirects=False, mounts=mounts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @contextmanager
    def open(self, path: str, start: int, length: int, size: int) -> Iterator[Iterator[bytes]]:
        """Open `length` bytes from `start` of a file of `size` bytes.

        Raises `unavailable`, which a retry may help, and `forbidden`, `not-found`, `digest-mismatch`.
        """
        source = self._source
        url = f"{source.endpoint}/{quote(source.repository)}/resolve/{source.commit_id}/{quote(path)}"
        headers = {
            "Range": f"bytes={start}-{start + length - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": "lora-registry",
        }
        try:
            with ExitStack() as stack:
                for _ in range(MAX_REDIRECTS + 1):
                    sent = headers | self._authorization(url)
                    response = stack.enter_context(self._client.stream("GET", url, headers=sent))
                    if not response.has_redirect_location:
                        break
                    url = self._redirected(url, response.headers["location"], path)
                    stack.close()
                else:
                    raise self._broken(path, f"redirects more than {MAX_REDIRECTS} times")
                self._check(response, path, start, length, size)
                yield response.iter_raw()
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._broken(path, f"broke the connection ({type(error).__name__})") from None

    def _authorization(self, url: str) -> dict[str, str]:
        ours = urlsplit(self._source.endpoint)
        asked = urlsplit(url)
        if self._token is None or (asked.scheme, asked.netloc.lower()) != (ours.scheme, ours.netloc):
            return {}
        return {"Authorization": f"Bearer {self._token}"}

    def _redirected(self, url: str, location: str, path: str) -> str:
        """The next URL: over https, unless the Hub itself is not, and not of the machine's own link."""
        target = urljoin(url, location)
        parts = urlsplit(target)
        allowed = parts.scheme == "https" or (parts.scheme == "http" and self._source.endpoint.startswith("http:"))
        if not allowed or not parts.hostname or parts.username is not None or _is_link_local(parts.hostname):
            raise RegistryError(
                "forbidden", f"{self.host} redirects {path} of {self.name} to a URL that is not followed."
            )
        return target

    def _check(self, response: httpx2.Response, path: str, start: int, length: int, size: int) -> None:
        status = response.status_code
        if status in (401, 403):
            raise RegistryError(
                "forbidden",
                f"{self.host} does not give {path} of {self.name} to this service (status {status}).",
                hint="If it is private or gated, set LORA_REG_HUB_TOKEN_FILE for the workers, or push the weights.",
            )
        if status in (404, 410):
            raise RegistryError(
                "not-found", f"{self.host} has no {path} of {self.name}.", hint="Push the weights from another copy."
            )
        if status not in (200, 206):
            raise self._broken(path, f"answered {status}")
        if status == 200 and (start, length) != (0, size):
            raise RegistryError("forbidden", f"{self.host} sends {path} of {self.name} only as a whole.")
        stated = response.headers.get("content-range", "").rpartition("/")[2] if status == 206 else ""
        if stated.isdecimal() and int(stated) != size:
            raise RegistryError(
                "digest-mismatch", f"{path} of {self.name} has {stated} bytes at {self.host}; the base pins {size}."
            )

    def _broken(self, path: str, what: str) -> RegistryError:
        return RegistryError("unavailable", f"{self.host} {what} on {path} of {self.name}.")


def read_token(file: Path) -> str:
    """Read a token from the first line of a file. Raises RegistryError `unavailable`."""
    try:
        token = file.read_text("utf-8").partition("\n")[0].strip()
    except (OSError, ValueError):
        token = ""
    if not token or not token.isascii() or not token.isprintable():
        raise RegistryError(
            "unavailable",
            "The file that LORA_REG_HUB_TOKEN_FILE names cannot be read, or does not begin with a token.",
            hint="Write the token into its first line, readable by the worker.",
        )
    return token


def _is_link_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:
        return False
