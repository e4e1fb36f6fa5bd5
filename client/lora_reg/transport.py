"""One HTTP client: timeouts, retries, redirects, problem documents.

Connection errors and retryable responses are retried for all requests but a POST without an Idempotency-Key. Redirects
are followed for reads only, and the token is not sent to another origin.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import httpx2

from lora_contract import __version__
from lora_contract.errors import RegistryError
from lora_reg import problems

TIMEOUT: Final = httpx2.Timeout(connect=10.0, read=60.0, write=60.0, pool=None)
ATTEMPTS: Final = 5
FEW: Final = 2
MAX_WAIT: Final = 60.0
_MAX_REDIRECTS: Final = 5
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")

Body = Callable[[], Iterator[bytes]]
Token: TypeAlias = Callable[[], str | None] | str | None


class Transport:
    """Requests to one registry and to the stores that it redirects to. Thread-safe."""

    def __init__(
        self,
        server: str,
        token: Token = None,
        *,
        scheme: str = "Bearer",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """token: asked for before each request if it is a function, whose `refusal` may say why it has none. scheme: of
        the Authorization header."""
        self.server = server.rstrip("/")
        self._token = token
        self._scheme = scheme
        self._sleep = sleep
        self._reached = False
        self._own = _http_client(self.server)
        self._stores: dict[str, httpx2.Client] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        self._own.close()
        for client in self._stores.values():
            client.close()

    def url(self, path: str) -> str:
        return self.server + path

    def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Body | None = None,
        timeout: float | None = None,
        accept: tuple[int, ...] = (),
    ) -> httpx2.Response:
        """Send a request and read the whole response.

        timeout: seconds without a byte; None for the default. accept: statuses of 400 and above to return. Raises
        RegistryError with the code of the response, or `unavailable`.
        """
        return self._exchange(method, url, params, headers, content, timeout, accept, whole=True)

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Body | None = None,
        timeout: float | None = None,
        accept: tuple[int, ...] = (),
    ) -> Iterator[httpx2.Response]:
        """Like `request`, with the body still to be read. Errors while reading it are those of httpx2."""
        response = self._exchange(method, url, params, headers, content, timeout, accept, whole=False)
        try:
            yield response
        finally:
            response.close()

    def _exchange(
        self,
        method: str,
        url: str,
        params: Mapping[str, str | int] | None,
        headers: Mapping[str, str] | None,
        content: bytes | Body | None,
        timeout: float | None,
        accept: tuple[int, ...],
        *,
        whole: bool,
    ) -> httpx2.Response:
        retry = method != "POST" or "Idempotency-Key" in (headers or {})
        attempt = 0
        while True:
            attempt += 1
            wait: float | None = None
            try:
                response = self._send(method, url, params, headers, content, timeout)
                self._reached = True
                if response.status_code < 400 or response.status_code in accept:
                    if whole:
                        response.read()
                    return response
            except (httpx2.RequestError, httpx2.InvalidURL) as error:
                refused = isinstance(error, httpx2.ConnectError)
                refusal = problems.unreachable(url, error, refused=refused and self._is_own(url))
                refusal.__cause__ = error
                # A server that never answered is probably not running, and a silent one has used up its time.
                hopeless = isinstance(error, httpx2.TimeoutException) or (refused and not self._reached)
                last = attempt >= (FEW if hopeless else ATTEMPTS)
            else:
                refusal, wait = _refusal(response, own=self._is_own(str(response.url)))
                reason = getattr(self._token, "refusal", None)
                if refusal.code == "unauthenticated" and isinstance(reason, RegistryError):
                    raise reason
                last = attempt >= ATTEMPTS
            if last or not retry or not _may_pass(refusal):
                raise refusal
            self._sleep(min(wait if wait is not None else _backoff(attempt), MAX_WAIT))

    def _send(
        self,
        method: str,
        url: str,
        params: Mapping[str, str | int] | None,
        headers: Mapping[str, str] | None,
        content: bytes | Body | None,
        timeout: float | None,
    ) -> httpx2.Response:
        for _ in range(_MAX_REDIRECTS):
            client = self._client(url)
            request = client.build_request(
                method,
                url,
                params=params,
                headers=dict(headers or {}),
                content=content() if callable(content) else content,
                timeout=httpx2.Timeout(10.0, read=timeout, write=timeout, pool=None) if timeout else TIMEOUT,
            )
            if self._is_own(url) and (token := self._token() if callable(self._token) else self._token):
                request.headers["Authorization"] = f"{self._scheme} {token}"
            response = client.send(request, stream=True)
            if not response.has_redirect_location or method not in ("GET", "HEAD"):
                return response
            response.close()
            url, params = str(response.url.join(response.headers["location"])), None
            if urlsplit(url).scheme not in ("http", "https"):
                raise httpx2.UnsupportedProtocol(f"a redirect to {urlsplit(url).scheme}:")
        raise httpx2.TooManyRedirects("more than five redirects", request=request)

    def _is_own(self, url: str) -> bool:
        return _origin(url) == _origin(self.server)

    def _client(self, url: str) -> httpx2.Client:
        if self._is_own(url):
            return self._own
        scheme = urlsplit(url).scheme
        with self._lock:  # of two clients that threads made at once, one would never be closed
            if scheme not in self._stores:
                self._stores[scheme] = _http_client(url)
            return self._stores[scheme]


def _http_client(url: str) -> httpx2.Client:
    # Reading the CA bundle takes 20 ms, which http does not need. Loopback never goes through a proxy.
    return httpx2.Client(
        verify=urlsplit(url).scheme == "https",
        mounts={f"all://{host}": None for host in _LOOPBACK},
        limits=httpx2.Limits(max_connections=32, max_keepalive_connections=8),
        headers={"User-Agent": f"lora-reg/{__version__}", "Accept-Encoding": "identity"},
    )


def _refusal(response: httpx2.Response, *, own: bool) -> tuple[RegistryError, float | None]:
    """The error of a response and its Retry-After. Closes the response."""
    try:
        body = b"".join(_bounded(response)) if own else b""
    except httpx2.RequestError as broken:
        return problems.unreachable(str(response.url), broken, refused=False), None
    finally:
        response.close()
    wait = response.headers.get("retry-after", "")
    error = problems.from_answer(response, body) if own else problems.from_store(response)
    return error, float(wait) if wait.isascii() and wait.isdigit() else None


def _bounded(response: httpx2.Response) -> Iterator[bytes]:
    seen = 0
    for chunk in response.iter_bytes():
        seen += len(chunk)
        if seen > problems.MAX_PROBLEM_BYTES:
            return
        yield chunk


def _may_pass(error: RegistryError) -> bool:
    """Whether another attempt may help. A store's 403 is an expired signature and is final."""
    if error.code == "storage-unavailable" and "status" in error.facts:
        return error.facts["status"] in (408, 429, 500, 502, 503, 504)
    return error.kind.retryable


def _backoff(attempt: int) -> float:
    return float(0.2 * 2 ** (attempt - 1) * (0.5 + random.random()))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
