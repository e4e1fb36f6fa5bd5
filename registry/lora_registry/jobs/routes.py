"""Routes of jobs and their reports."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final

import anyio
import anyio.to_thread
from litestar import Request, Response, Router
from litestar import get as async_get
from litestar.params import QueryParameter

from lora_contract.wire.jobs import JobList, JobProgressList, JobView, ReportList
from lora_registry.auth.caller import Caller
from lora_registry.http.answers import reply
from lora_registry.http.handlers import FromPath, Limit, Text, Wait, get, post
from lora_registry.http.problems import RESPONSES
from lora_registry.jobs import reports
from lora_registry.jobs import service as jobs
from lora_registry.jobs.engine.port import TERMINAL, State
from lora_registry.repositories.paths import VersionPath

R = Request[Any, Any, Any]
POLL_SECONDS: Final = 0.2
Offset = Annotated[int, QueryParameter(ge=0, le=2**31 - 1, description="Offset of the first record.")]


@get("/jobs", summary="List jobs, newest first")
def list_jobs(
    request: R,
    caller: Caller,
    kind: Text = None,
    exclude_kind: Text = None,
    job_state: Annotated[State | None, QueryParameter(name="state")] = None,
    cursor: Text = None,
    limit: Limit = 50,
) -> Response[JobList]:
    found = jobs.list_all(caller, kind=kind, exclude_kind=exclude_kind, state=job_state, cursor=cursor, limit=limit)
    return reply(request, found)


@get("/jobs/{job_id:str}", summary="Show a job")
def show_job(request: R, caller: Caller, job_id: FromPath[str]) -> Response[JobView]:
    return reply(request, jobs.show(caller, job_id))


@async_get(
    "/jobs/{job_id:str}/progress",
    responses=RESPONSES,
    summary="Follow a job: answers when there are new progress records",
)
async def follow_job(
    request: R, caller: Caller, job_id: FromPath[str], offset: Offset = 0, wait: Wait = 0.0
) -> Response[JobProgressList]:
    deadline = anyio.current_time() + wait
    while True:
        # No thread is held between polls: a hundred followers must not stop the service.
        found = await anyio.to_thread.run_sync(partial(jobs.progress, caller, job_id, offset=offset))
        if found.items or found.state in TERMINAL or anyio.current_time() >= deadline:
            return reply(request, found)
        await anyio.sleep(POLL_SECONDS)


@post("/jobs/{job_id:str}/cancel", summary="Cancel a job", status_code=200)
def cancel_job(request: R, caller: Caller, job_id: FromPath[str]) -> Response[JobView]:
    return reply(request, jobs.cancel(caller, job_id))


@post("/jobs/{job_id:str}/retry", summary="Start a failed or cancelled job again", status_code=200)
def retry_job(request: R, caller: Caller, job_id: FromPath[str]) -> Response[JobView]:
    return reply(request, jobs.retry(caller, job_id))


@get("/repositories/{namespace:str}/{name:str}/versions/{selector:str}/reports", summary="Reports on a version")
def list_reports(
    request: R,
    caller: Caller,
    version: VersionPath,
) -> Response[ReportList]:
    return reply(request, reports.list_all(caller, version))


router = Router(
    "/", tags=["operations"], route_handlers=[list_jobs, show_job, follow_job, cancel_job, retry_job, list_reports]
)
