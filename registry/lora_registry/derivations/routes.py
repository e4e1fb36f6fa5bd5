"""Routes of derivations (merge, compose, extract, resize, convert, base resize), diffs and reproductions."""

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
    ResizeBaseRequest,
    ResizeRequest,
)
from lora_registry.auth.caller import Caller
from lora_registry.derivations import compose, examine, extract, merge, resize, vocabulary
from lora_registry.http.answers import reply
from lora_registry.http.handlers import IdempotencyKey, JSONBody, post
from lora_registry.http.idempotency import once

R = Request[Any, Any, Any]


def _submit_once(
    request: R,
    caller: Caller,
    data: DeriveRequest,
    key: str | None,
    submit: Callable[[], JobView],
) -> Response[JobView]:
    status, view = once(caller, key, (request.url.path, data), JobView, lambda: (202, submit()))
    return reply(request, view, status=200 if view.state == "done" else status)


@post("/merges", summary="Merge adapters into their base, by a job", status_code=202, starts_job=True)
def submit_merge(
    request: R, caller: Caller, data: JSONBody[MergeRequest], idempotency_key: IdempotencyKey = None
) -> Response[JobView]:
    return _submit_once(request, caller, data, idempotency_key, lambda: merge.submit(caller, data))


@post(
    "/compositions", summary="Compose adapters of one base into one adapter, by a job", status_code=202, starts_job=True
)
def submit_composition(
    request: R,
    caller: Caller,
    data: JSONBody[ComposeRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[JobView]:
    return _submit_once(request, caller, data, idempotency_key, lambda: compose.submit(caller, data))


@post(
    "/extractions",
    summary="Extract an adapter from a fine-tune and its base, by a job",
    status_code=202,
    starts_job=True,
)
def submit_extraction(
    request: R,
    caller: Caller,
    data: JSONBody[ExtractRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[JobView]:
    return _submit_once(request, caller, data, idempotency_key, lambda: extract.submit(caller, data))


@post("/resizes", summary="Change the rank of an adapter, by a job", status_code=202, starts_job=True)
def submit_resize(
    request: R,
    caller: Caller,
    data: JSONBody[ResizeRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[JobView]:
    return _submit_once(request, caller, data, idempotency_key, lambda: resize.submit(caller, data))


@post(
    "/conversions",
    summary="Convert an adapter to plain LoRA with the same product, by a job",
    status_code=202,
    starts_job=True,
)
def submit_conversion(
    request: R,
    caller: Caller,
    data: JSONBody[ConvertRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[JobView]:
    return _submit_once(request, caller, data, idempotency_key, lambda: resize.submit_conversion(caller, data))


@post("/base-resizes", summary="Change the number of tokens of a base, by a job", status_code=202, starts_job=True)
def submit_base_resize(
    request: R,
    caller: Caller,
    data: JSONBody[ResizeBaseRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[JobView]:
    return _submit_once(request, caller, data, idempotency_key, lambda: vocabulary.submit(caller, data))


@post("/diffs", summary="Compare two adapters module by module, by a job", status_code=202, starts_job=True)
def submit_diff(request: R, caller: Caller, data: JSONBody[DiffRequest]) -> Response[JobView]:
    view = examine.diff(caller, data)
    return reply(request, view, status=200 if view.state == "done" else 202)


@post(
    "/reproductions", summary="Derive a version again and compare digests, by a job", status_code=202, starts_job=True
)
def submit_reproduction(
    request: R,
    caller: Caller,
    data: JSONBody[ReproduceRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[JobView]:
    def run() -> tuple[int, JobView]:
        return 202, examine.reproduce(caller, data)

    status, view = once(caller, idempotency_key, (request.url.path, data), JobView, run)
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
        submit_base_resize,
        submit_diff,
        submit_reproduction,
    ],
)
