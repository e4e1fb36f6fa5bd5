"""Requests of the client of `/api/v1`: URLs, bodies, pages, and decoding of answers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from lora_contract import decoding, reference
from lora_contract.errors import RegistryError
from lora_contract.reference import Reference
from lora_contract.wire.common import API, Request
from lora_reg import identity
from lora_reg.config import Settings, load_settings
from lora_reg.problems import place
from lora_reg.transport import Body, Transport

PAGE: Final = 200

T = TypeVar("T")


class Calls:
    """A connection to one registry, with one token."""

    def __init__(
        self,
        server: str | None = None,
        token: str | None = None,
        *,
        namespace: str | None = None,
        settings: Settings | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.settings = settings or load_settings(server=server, token=token)
        self.namespace = namespace or self.settings.namespace
        self.transport = transport or Transport(self.settings.server, identity.tokens(self.settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.transport.close()

    def parse(self, text: str | Reference) -> Reference:
        """A reference with its namespace filled in."""
        parsed = text if isinstance(text, Reference) else reference.parse(text)
        return parsed.with_namespace(self.namespace)

    def _repository(self, ref: str | Reference) -> str:
        parsed = self.parse(ref)
        return f"/repositories/{parsed.namespace}/{parsed.name}"

    def _version(self, ref: str | Reference) -> str:
        parsed = self.parse(ref)
        return f"/repositories/{parsed.namespace}/{parsed.name}/versions/{quote(parsed.selector(), safe=':@')}"

    def _tag(self, ref: str | Reference, tag: str) -> str:
        return f"{self._repository(ref)}/tags/{quote(reference.check_tag(tag), safe='')}"

    def _url(self, path: str) -> str:
        return self.transport.url(API + path)

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str | int | None] | None = None,
        headers: dict[str, str] | None = None,
        content: bytes | Body | None = None,
        timeout: float | None = None,
    ) -> httpx2.Response:
        given = {key: value for key, value in (params or {}).items() if value is not None}
        return self.transport.request(
            method, self._url(path), params=given or None, headers=headers, content=content, timeout=timeout
        )

    def _send(
        self,
        method: str,
        path: str,
        body: Request | None = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> httpx2.Response:
        """Send a change. Its Idempotency-Key makes it safe to send again after a broken connection."""
        sent = {"Idempotency-Key": secrets.token_hex(16), **(headers or {})}
        content = None
        if body is not None:
            sent["Content-Type"] = "application/json"
            content = msgspec.json.encode(body)
        return self._call(method, path, headers=sent, content=content, timeout=timeout)

    def _get(self, path: str, kind: type[T], params: dict[str, str | int | None] | None = None) -> T:
        return self._decode(self._call("GET", path, params=params), kind)

    def _put(self, path: str, body: Request, kind: type[T], headers: dict[str, str] | None = None) -> T:
        return self._decode(self._send("PUT", path, body, headers), kind)

    def _post(
        self,
        path: str,
        body: Request,
        kind: type[T],
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> T:
        return self._decode(self._send("POST", path, body, headers, timeout), kind)

    def _pages(
        self, path: str, kind: type[Any], params: dict[str, str | int | None], limit: int | None
    ) -> Iterator[Any]:
        left = limit
        cursor: str | None = None
        while left is None or left > 0:
            size = PAGE if left is None else min(left, PAGE)
            page = self._get(path, kind, {**params, "limit": size, "cursor": cursor})
            yield from page.items
            left = None if left is None else left - len(page.items)
            cursor = page.next_cursor
            if cursor is None or not page.items:
                return

    def _decode(self, response: httpx2.Response, kind: type[T]) -> T:
        try:
            return decoding.decode(response.content, kind)
        except msgspec.MsgspecError as error:
            raise RegistryError(
                "unavailable",
                f"The answer of {place(response.url)} is not a {kind.__name__}: {error}.",
                hint="Check that the server is a lora-registry and not older than this client.",
            ) from error
