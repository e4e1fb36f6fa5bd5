"""Turn error responses and broken connections into RegistryErrors."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import msgspec

from lora_contract import decoding
from lora_contract.errors import ErrorCode, RegistryError, known_code
from lora_contract.wire.common import Problem

MAX_PROBLEM_BYTES: Final = 16 * 1024 * 1024
_BY_STATUS: Final[dict[int, ErrorCode]] = {
    400: "invalid-request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    409: "conflict",
    410: "deleted",
    412: "precondition-failed",
    413: "too-large",
    416: "range-not-satisfiable",
    422: "rejected",
    429: "rate-limited",
    502: "unavailable",
    503: "unavailable",
    504: "unavailable",
}


def place(url: httpx2.URL | str) -> str:
    """A URL without its query, which may contain a signature."""
    parts = urlsplit(str(url))
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def from_answer(response: httpx2.Response, body: bytes) -> RegistryError:
    """The error in a registry's response. Without a problem document, the status decides."""
    try:
        problem = decoding.decode(body, Problem)
    except msgspec.MsgspecError:
        code = _BY_STATUS.get(response.status_code, "internal")
        return RegistryError(
            code,
            f"{place(response.url)} answered {response.status_code} without a problem document.",
            hint=f"Check that {place(response.url.copy_with(raw_path=b'/'))} is a lora-registry."
            if code == "not-found"
            else None,
            status=response.status_code,
        )
    facts: dict[str, Any] = {"status": response.status_code}
    if problem.findings:
        facts["findings"] = msgspec.to_builtins(problem.findings)
    if problem.current is not None:
        facts["current"] = problem.current
    if problem.request_id:
        facts["request_id"] = problem.request_id
    # A newer server may know more codes than this client: its sentences are kept, the status picks the code.
    code = known_code(problem.code) or _BY_STATUS.get(response.status_code, "internal")
    return RegistryError(code, problem.detail, hint=problem.hint or None, **facts)


def from_store(response: httpx2.Response) -> RegistryError:
    """The error of a blob store behind a presigned URL. Its body is not shown: it may repeat the signature."""
    return RegistryError(
        "storage-unavailable",
        f"The blob store at {place(response.url)} answered {response.status_code}.",
        status=response.status_code,
    )


def unreachable(url: str, error: httpx2.HTTPError | httpx2.InvalidURL, *, refused: bool) -> RegistryError:
    """No response. refused: the connection was refused."""
    if refused:
        return RegistryError(
            "unavailable",
            f"No service answers at {place(url)}: {_reason(error)}.",
            hint="Start a service with `lora-registry serve`, or set its URL with --server or LORA_REG_SERVER.",
        )
    return RegistryError("unavailable", f"The connection to {place(url)} broke: {_reason(error)}.")


def _reason(error: httpx2.HTTPError | httpx2.InvalidURL) -> str:
    text = str(error).strip().rstrip(".")
    return text or type(error).__name__
