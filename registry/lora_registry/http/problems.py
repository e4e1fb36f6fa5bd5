"""Exception handlers: convert errors to RFC 9457 problem documents."""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.openapi.datastructures import ResponseSpec
from litestar.status_codes import HTTP_500_INTERNAL_SERVER_ERROR

from lora_contract.errors import ERRORS, ErrorCode, RegistryError
from lora_contract.wire.common import Problem
from lora_registry.runtime.clock import new_id

log = logging.getLogger("lora_registry.http")

MEDIA_TYPE: Final = "application/problem+json"
STATUSES: Final = sorted({kind.status for kind in ERRORS.values()} - {202} - {500})
RESPONSES: Final = {
    status: ResponseSpec(Problem, media_type=MEDIA_TYPE, generate_examples=False, description="A problem (RFC 9457).")
    for status in STATUSES
}
"""Every status in the table of errors, for the OpenAPI document."""

_BY_STATUS: Final[dict[int, ErrorCode]] = {
    400: "invalid-request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    415: "unsupported-media-type",
    429: "rate-limited",
}


def registry_error(request: Request[Any, Any, Any], error: RegistryError) -> Response[Any]:
    """Convert a RegistryError to a problem document."""
    if error.kind.status >= 500:
        log.error("%s %s: %s: %s", request.method, request.url.path, error.code, error.detail, exc_info=error)
    return _response(error)


def http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """Convert an error of the framework (unknown path, wrong method, invalid body) to a problem document."""
    code = _BY_STATUS.get(error.status_code, "invalid-request" if error.status_code < 500 else "internal")
    detail = error.detail if code != "internal" else "The service failed."
    if code == "internal":
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    extra = getattr(error, "extra", None)
    if isinstance(extra, list) and extra and isinstance(extra[0], dict):
        detail = "; ".join(f"{item.get('key', 'body')}: {item.get('message', 'is invalid')}" for item in extra[:5])
    response = _response(RegistryError(code, detail))
    for name, value in (error.headers or {}).items():
        if name.lower() == "allow":
            response.set_header("Allow", value)
    return response


def any_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Log any other exception in full; respond without details."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _response(RegistryError("internal", "The service failed."))


def _response(error: RegistryError) -> Response[Any]:
    kind = error.kind
    problem = Problem(
        type=f"urn:lora-reg:error:{error.code}",
        title=error.code.replace("-", " "),
        status=kind.status,
        detail=error.detail,
        code=error.code,
        hint=error.hint,
        retryable=kind.retryable,
        request_id=new_id()[:16],
        findings=error.facts.get("findings", []),
        current=error.facts.get("current"),
    )
    headers = {"Cache-Control": "no-store"}
    if kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if kind.retryable and kind.status != HTTP_500_INTERNAL_SERVER_ERROR:
        headers["Retry-After"] = str(error.facts.get("retry_after", 2))
    return Response(msgspec.json.encode(problem), status_code=kind.status, media_type=MEDIA_TYPE, headers=headers)
