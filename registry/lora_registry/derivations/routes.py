"""Routes of what derives a version (merge, compose, extract, resize, convert), of diffs and reproductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from litestar import Request, Response, Router

from lora_contract.wire.jobs import JobView
from lora_contract.wire.operations import (
    ComposeRequest,
    ConvertRequest,
    DeriveRequest,
    DiffRequest,
    ExtractRequest,
    MergeRequest,
    ReproduceRequest,
    ResizeRequest,
)
from lora_registry.auth.principals import Principal
from lora_registry.context import Context
from lora_registry.derivations import compose, examine, extract, merge, resize
from lora_registry.http.answers import reply
from lora_registry.http.handlers import IdempotencyKey, JSONBody, post
from lora_registry.http.idempotency import once

R = Request[Any, Any, Any]


def _answer(
    request: R,
    ctx: Context,
    principal: Principal,
    data: DeriveRequest,
    key: str | None,
    submit: Callable[[], JobView],
) -> Response[JobView]:
    status, view = once(ctx, principal, key, (request.url.path, data), JobView, lambda: (202, submit()))
    return reply(request, view, status=200 if view.state == "done" else status)


@post("/merges", summary="Merge adapters into their base, by a job", status_code=202)
def submit_merge(
    request: R, ctx: Context, principal: Principal, data: JSONBody[MergeRequest], idempotency_key: IdempotencyKey = None
) -> Response[JobView]:
    return _answer(request, ctx, principal, data, idempotency_key, lambda: merge.submit(ctx, principal, data))


@post("/compositions", summary="Compose adapters of one base into one adapter, by a job", status_code=202)
def submit_composition(
    request: R,
    ctx: Context,
    principal: Principal,
    data: JSONBody[ComposeRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[JobView]:
    return _answer(request, ctx, principal, data, idempotency_key, lambda: compose.submit(ctx, principal, data))


@post("/extractions", summary="Extract an adapter from a fine-tune and its base, by a job", status_code=202)
def submit_extraction(
    request: R,
    ctx: Context,
    principal: Principal,
    data: JSONBody[ExtractRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[JobView]:
    return _answer(request, ctx, principal, data, idempotency_key, lambda: extract.submit(ctx, principal, data))


@post("/resizes", summary="Bring an adapter to another rank, by a job", status_code=202)
def submit_resize(
    request: R,
    ctx: Context,
    principal: Principal,
    data: JSONBody[ResizeRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[JobView]:
    return _answer(request, ctx, principal, data, idempotency_key, lambda: resize.submit(ctx, principal, data))


@post("/conversions", summary="Make an adapter plain LoRA with the same product, by a job", status_code=202)
def submit_conversion(
    request: R,
    ctx: Context,
    principal: Principal,
    data: JSONBody[ConvertRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[JobView]:
    return _answer(
        request, ctx, principal, data, idempotency_key, lambda: resize.submit_conversion(ctx, principal, data)
    )


@post("/diffs", summary="Compare two adapters module by module, by a job", status_code=202)
def submit_diff(request: R, ctx: Context, principal: Principal, data: JSONBody[DiffRequest]) -> Response[JobView]:
    view = examine.diff(ctx, principal, data)
    return reply(request, view, status=200 if view.state == "done" else 202)


@post("/reproductions", summary="Derive a version again and compare digests, by a job", status_code=202)
def submit_reproduction(
    request: R,
    ctx: Context,
    principal: Principal,
    data: JSONBody[ReproduceRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[JobView]:
    def run() -> tuple[int, JobView]:
        return 202, examine.reproduce(ctx, principal, data)

    status, view = once(ctx, principal, idempotency_key, (request.url.path, data), JobView, run)
    return reply(request, view, status=status)


router = Router(
    "/",
    tags=["operations"],
    route_handlers=[
        submit_merge,
        submit_composition,
        submit_extraction,
        submit_resize,
        submit_conversion,
        submit_diff,
        submit_reproduction,
    ],
)
