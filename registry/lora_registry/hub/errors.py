"""Errors for Hub clients: `X-Error-Code` selects the exception they raise, `X-Error-Message` is its text.

A RegistryError has the Hub's code in `facts["hub"]` if it is known whether repository, revision or file is missing.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from lora_contract.errors import ErrorCode, RegistryError
from lora_registry.auth.principals import Principal
from lora_registry.runtime.clock import new_id

log = logging.getLogger("lora_registry.hub")

MAX_HEADER: Final = 500
_SECRET: Final = re.compile(r"/api/lfs/[^/]*")
_BY_STATUS: Final[dict[int, ErrorCode]] = {413: "too-large", 405: "method-not-allowed", 404: "not-found"}

_STATUS: Final[dict[ErrorCode, int]] = {
    "deleted": 404,  # the Hub never sends 410 for a model; clients would not understand it
    "tag-gated": 403,  # with `exist_ok`, clients take 409 for success
}


def repo_not_found(repo_id: str, principal: Principal) -> RegistryError:
    """Also for repositories that the caller may not read: the response must be the same."""
    if not principal.signed_in:
        return RegistryError("unauthenticated", "The request has no token, and nothing public has this name.")
    return RegistryError(
        "not-found",
        f"There is no repository {repo_id[:200]!r} that you may read.",
        hint="Check the name with `lora-reg list`; nothing is fetched from huggingface.co.",
        hub="RepoNotFound",
    )


def revision_not_found(detail: str) -> RegistryError:
    """The only error for which clients do not fall back to files in their cache."""
    hint = "A revision is main, a tag, a version such as v1, or a commit of 40 hex digits."
    return RegistryError("not-found", detail, hint=hint, hub="RevisionNotFound")


def entry_not_found(detail: str, *, commit: str) -> RegistryError:
    """commit: lets clients cache that this version has no such file."""
    hint = "List the files with `lora-reg show`."
    return RegistryError("not-found", detail, hint=hint, hub="EntryNotFound", commit=commit)


def not_writable() -> RegistryError:
    return RegistryError(
        "method-not-allowed",
        "The Hub dialect of this registry has no such write.",
        hint="It takes repositories, commits, tags and branches; for all else see `lora-reg --help`.",
    )


def registry_error(request: Request[Any, Any, Any], error: RegistryError) -> Response[Any]:
    """Convert a RegistryError to a response for Hub clients."""
    if error.kind.status >= 500:
        log.error("%s %s: %s: %s", request.method, _shown(request), error.code, error.detail, exc_info=error)
    return _response(error)


def framework_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """Convert an error of the framework, such as a body that is too large."""
    code = _BY_STATUS.get(error.status_code, "invalid-request" if error.status_code < 500 else "internal")
    return registry_error(request, RegistryError(code, error.detail))


def any_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Log any other exception in full; respond without details."""
    log.error("%s %s failed", request.method, _shown(request), exc_info=error)
    return _response(RegistryError("internal", "The service failed."))


def _shown(request: Request[Any, Any, Any]) -> str:
    """Return the path without the secret that a URL to send a file to holds."""
    return _SECRET.sub("/api/lfs/…", request.url.path)


def _response(error: RegistryError) -> Response[Any]:
    kind, request_id = error.kind, new_id()[:16]
    status = _STATUS.get(error.code, kind.status)
    headers = {
        "X-Error-Message": header_text(f"{error.detail} {error.hint}"),
        "X-Request-Id": request_id,
        "Cache-Control": "no-store",
    }
    # Never a bare 401: clients misread it over plain http.
    if hub := "RepoNotFound" if status == 401 else error.facts.get("hub"):
        headers["X-Error-Code"] = hub
    if commit := error.facts.get("commit"):
        headers["X-Repo-Commit"] = commit
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if kind.retryable and status != 500:
        headers["Retry-After"] = "2"
    body = msgspec.json.encode({"error": error.detail, "code": error.code, "request_id": request_id})
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def header_text(text: str) -> str:
    """Convert free text (reasons, names) to a header value: one line of printable ASCII."""
    line = " ".join(text.split())
    return "".join(c if " " <= c <= "~" else "?" for c in line)[:MAX_HEADER]
