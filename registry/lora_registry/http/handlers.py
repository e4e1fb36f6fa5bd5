"""Route decorators with what every route of ours has: threads for sync code, documented problems, shared parameters."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, TypeAlias, TypeVar

from litestar import delete as _delete
from litestar import get as _get
from litestar import post as _post
from litestar import put as _put
from litestar.params import BodyKwarg, FromPath, HeaderParameter, JSONBody, QueryParameter

from lora_registry.http.problems import RESPONSES

__all__ = [
    "FromPath",
    "IdempotencyKey",
    "IfMatch",
    "IfNoneMatch",
    "JSONBody",
    "BodyKwarg",
    "Limit",
    "Text",
    "Wait",
    "delete",
    "get",
    "post",
    "put",
]

T = TypeVar("T")

get: Any = partial(_get, sync_to_thread=True, responses=RESPONSES)
post: Any = partial(_post, sync_to_thread=True, responses=RESPONSES)
put: Any = partial(_put, sync_to_thread=True, responses=RESPONSES, status_code=200)
delete: Any = partial(_delete, sync_to_thread=True, responses=RESPONSES)

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=1000, description="How many items a page holds.")]
Wait: TypeAlias = Annotated[float, QueryParameter(ge=0, le=30, description="Seconds to wait for something new.")]
Text: TypeAlias = Annotated[str | None, QueryParameter()]
IfMatch: TypeAlias = Annotated[str | None, HeaderParameter(name="If-Match")]
IfNoneMatch: TypeAlias = Annotated[str | None, HeaderParameter(name="If-None-Match")]
IdempotencyKey: TypeAlias = Annotated[str | None, HeaderParameter(name="Idempotency-Key")]
