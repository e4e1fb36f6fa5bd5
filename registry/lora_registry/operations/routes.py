"""Routes of derived versions, jobs, reports and events."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final

import anyio
import anyio.to_thread
from litestar import Request, Response, Router
from litestar import get as async_get
from litestar.params import QueryParameter

from lora_contract.wire.common import Principal as PrincipalView
from lora_contract.wire.jobs import EventList, JobList, JobProgressList, JobView, ReportList
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
from lora_registry.events import audit
from lora_registry.http.answers import reply
from lora_registry.http.handlers import FromPath, IdempotencyKey, JSONBody, Limit, Text, Wait, get, post
from lora_registry.http.idempotency import once
from lora_registry.http.problems import RESPONSES
from lora_registry.jobs.port import TERMINAL, State
from lora_registry.operations import compose, examine, extract, jobs, merge, reports, resize

R = Request[Any, Any, Any]
POLL_SECONDS: Final = 0.2
Offset = Annotated[int, QueryParameter(ge=0, le=2**31 - 1, description="Records from this one on.")]


@get("/whoami", summary="Who the caller is")
def whoami(request: R, principal: Principal) -> Response[PrincipalView]:
    return reply(
        request,
        PrincipalView(
            name=principal.name, role=principal.role, namespace=principal.namespace, anonymous=principal.anonymous
        ),
    )


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


@get("/jobs", summary="List jobs, newest first")
def list_jobs(
    request: R,
    ctx: Context,
    principal: Principal,
    kind: Text = None,
    job_state: Annotated[State | None, QueryParameter(name="state")] = None,
    cursor: Text = None,
    limit: Limit = 50,
) -> Response[JobList]:
    return reply(request, jobs.list_all(ctx, principal, kind=kind, state=job_state, cursor=cursor, limit=limit))


@get("/jobs/{job_id:str}", summary="Show a job")
def show_job(request: R, ctx: Context, principal: Principal, job_id: FromPath[str]) -> Response[JobView]:
    return reply(request, jobs.show(ctx, principal, job_id))


@async_get(
    "/jobs/{job_id:str}/progress",
    responses=RESPONSES,
    summary="Follow a job: answers as soon as there is something new",
)
async def follow_job(
    request: R, ctx: Context, principal: Principal, job_id: FromPath[str], offset: Offset = 0, wait: Wait = 0.0
) -> Response[JobProgressList]:
    deadline = anyio.current_time() + wait
    while True:
        # Between looks the request holds no thread: a hundred followers must not stop the service.
        found = await anyio.to_thread.run_sync(partial(jobs.progress, ctx, principal, job_id, offset=offset))
        if found.items or found.state in TERMINAL or anyio.current_time() >= deadline:
            return reply(request, found)
        await anyio.sleep(POLL_SECONDS)


@post("/jobs/{job_id:str}/cancel", summary="Cancel a job", status_code=200)
def cancel_job(request: R, ctx: Context, principal: Principal, job_id: FromPath[str]) -> Response[JobView]:
    return reply(request, jobs.cancel(ctx, principal, job_id))


@post("/jobs/{job_id:str}/retry", summary="Start a failed or cancelled job again", status_code=200)
def retry_job(request: R, ctx: Context, principal: Principal, job_id: FromPath[str]) -> Response[JobView]:
    return reply(request, jobs.retry(ctx, principal, job_id))


@get("/repositories/{namespace:str}/{name:str}/versions/{selector:str}/reports", summary="Reports on a version")
def list_reports(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    selector: FromPath[str],
) -> Response[ReportList]:
    return reply(request, reports.list_all(ctx, principal, namespace, name, selector))


@get("/events", summary="What was done, in order")
def list_events(
    request: R, ctx: Context, principal: Principal, after: Text = None, limit: Limit = 100
) -> Response[EventList]:
    with ctx.db.read() as session:
        return reply(request, audit.read(session, principal=principal, after=after, limit=limit))


router = Router(
    "/",
    tags=["operations"],
    route_handlers=[
        whoami,
        submit_merge,
        submit_composition,
        submit_extraction,
        submit_resize,
        submit_conversion,
        submit_diff,
        submit_reproduction,
        list_jobs,
        show_job,
        follow_job,
        cancel_job,
        retry_job,
        list_reports,
        list_events,
    ],
)
