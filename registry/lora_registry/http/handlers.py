"""Route decorators with common defaults (threads for sync code, documented problems), and shared parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeAlias

import anyio
import anyio.to_thread
from litestar import delete as _delete
from litestar import get as _get
from litestar import post as _post
from litestar import put as _put
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import BodyKwarg, FromPath, HeaderParameter, JSONBody, QueryParameter

from lora_registry.auth.rates import OPTION
from lora_registry.http.admission import admit_json, admit_open_json
from lora_registry.http.problems import RESPONSES

__all__ = [
    "FromPath",
    "IdempotencyKey",
    "IfMatch",
    "IfNoneMatch",
    "JSONBody",
    "BodyKwarg",
    "Limit",
    "LongText",
    "Text",
    "Wait",
    "delete",
    "get",
    "open_post",
    "post",
    "put",
]

_WRITERS: Final = anyio.CapacityLimiter(24)

Decorator: TypeAlias = Callable[[Callable[..., Any]], HTTPRouteHandler]


def get(path: str, *, summary: str, media_type: str | None = None) -> Decorator:
    return _get(path, sync_to_thread=True, responses=RESPONSES, summary=summary, media_type=media_type)


def post(
    path: str,
    *,
    summary: str,
    status_code: int = 201,
    responses: Mapping[int, ResponseSpec] | None = None,
    starts_job: bool = False,
) -> Decorator:
    """responses: others than that of `status_code` and problems. starts_job: a worker is put to work."""
    return _writing(
        _post(
            path,
            responses={**RESPONSES, **(responses or {})},
            summary=summary,
            status_code=status_code,
            before_request=admit_json,
            opt={OPTION: "jobs"} if starts_job else None,
        )
    )


def open_post(path: str, *, summary: str, max_body: int) -> Decorator:
    """A route for callers without a token. max_body: bytes."""
    return _writing(
        _post(
            path,
            responses=RESPONSES,
            summary=summary,
            before_request=admit_open_json,
            request_max_body_size=max_body,
        )
    )


def put(path: str, *, summary: str) -> Decorator:
    return _writing(
        _put(
            path,
            responses=RESPONSES,
            summary=summary,
            status_code=200,
            before_request=admit_json,
        )
    )


def delete(path: str, *, summary: str, status_code: int = 204) -> Decorator:
    return _writing(_delete(path, responses=RESPONSES, summary=summary, status_code=status_code))


def _writing(route: Decorator) -> Decorator:
    """Run handlers that write in threads of their own: on SQLite they wait for its lock, and reads do not."""

    def decorate(handler: Callable[..., Any]) -> HTTPRouteHandler:
        @functools.wraps(handler)
        async def run(*args: Any, **kwargs: Any) -> Any:
            return await anyio.to_thread.run_sync(functools.partial(handler, *args, **kwargs), limiter=_WRITERS)

        return route(run)

    return decorate


Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=1000, description="Maximum number of items in a page.")]
Wait: TypeAlias = Annotated[float, QueryParameter(ge=0, le=30, description="Seconds to wait for new records.")]
Text: TypeAlias = Annotated[str | None, QueryParameter()]
LongText: TypeAlias = Annotated[str | None, QueryParameter(max_length=4096)]
IfMatch: TypeAlias = Annotated[str | None, HeaderParameter(name="If-Match")]
IfNoneMatch: TypeAlias = Annotated[str | None, HeaderParameter(name="If-None-Match")]
IdempotencyKey: TypeAlias = Annotated[str | None, HeaderParameter(name="Idempotency-Key")]
