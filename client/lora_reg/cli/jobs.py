"""job list, show, logs, cancel, retry, wait."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from lora_reg.cli.state import LazyGroup, State, pass_state

if TYPE_CHECKING:
    from lora_contract.wire.jobs import JobProgress, JobView
    from lora_reg.client import Client

INSPECT: Final = "inspect"
"""Every push starts one; `job list` hides them unless asked."""


@click.group(cls=LazyGroup)
def job() -> None:
    """Manage jobs: list, show, follow, cancel, retry, wait.

    ID is a job's id, or its beginning if no other job's id begins with it.
    """


@job.command(
    "list",
    examples=("lora-reg job list", "lora-reg job list --state failed", "lora-reg job list --kind merge --limit 5"),
)
@click.option(
    "--state",
    "wanted",
    type=click.Choice(["queued", "running", "done", "failed", "cancelled"]),
    help="List jobs in this state only.",
)
@click.option("--kind", metavar="KIND", help="List jobs of this kind only, e.g. merge, validate or inspect.")
@click.option("--all", "everything", is_flag=True, help="Include the inspections that pushes start.")
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="Maximum number of jobs."
)
@pass_state
def list_(state: State, wanted: str | None, kind: str | None, everything: bool, limit: int) -> None:
    """List jobs, newest first.

    Inspections, which every push starts, are shown only with --all or --kind inspect.
    """
    from itertools import islice

    from lora_reg.formatting import jobs

    client, output = state.client(), state.output()
    if everything or kind is not None:
        found = list(client.jobs(state=wanted, kind=kind, limit=limit))
    else:
        found = list(islice((view for view in client.jobs(state=wanted) if view.kind != INSPECT), limit))
    if not found:
        output.note(
            "There are no such jobs."
            if everything or kind or wanted
            else "There are no jobs; --all includes inspections."
        )
    output.result("lora-reg/job-list/1", {"items": found}, human=jobs.jobs(found), quiet=[view.id for view in found])


@job.command(examples=("lora-reg job show merge-1f3a9c",))
@click.argument("job_id", metavar="ID")
@pass_state
def show(state: State, job_id: str) -> None:
    """Show a job."""
    print_job(state, state.client().job(job_id))


@job.command(examples=("lora-reg job logs merge-1f3a9c -f",))
@click.argument("job_id", metavar="ID")
@click.option("--follow", "-f", is_flag=True, help="Follow the log until the job ends.")
@pass_state
def logs(state: State, job_id: str, follow: bool) -> None:
    """Show the progress that a job has reported."""
    from lora_reg.formatting.text import when
    from lora_reg.waiting import follow as wait_for

    client, output = state.client(), state.output()
    job_id = client.job(job_id).id
    items: list[JobProgress] = []

    def line(item: JobProgress) -> str:
        amount = f"  {item.done}/{item.total} {item.unit}".rstrip() if item.total else ""
        return f"{when(item.at)}  {item.step}{amount}  {item.message}".rstrip()

    def show_now(item: JobProgress) -> None:
        items.append(item)
        if output.mode == "human":
            output.line(line(item))

    if follow:
        ended = interruptible(
            state, job_id, lambda: wait_for(client, job_id, report=show_now, unclaimed=partial(warn_unclaimed, state))
        ).state
    else:
        while page := client.job_progress(job_id, offset=items[-1].offset + 1 if items else 0):
            for item in page.items:
                show_now(item)
            ended = page.state
            if not page.items:
                break
    output.result(
        "lora-reg/job-logs/1",
        {"id": job_id, "state": ended, "items": items},
        human=[],
        quiet=[line(item) for item in items],
    )


@job.command(examples=("lora-reg job cancel merge-1f3a9c",))
@click.argument("job_id", metavar="ID")
@pass_state
def cancel(state: State, job_id: str) -> None:
    """Cancel a job."""
    print_job(state, state.client().cancel_job(job_id))


@job.command(examples=("lora-reg job retry merge-1f3a9c",))
@click.argument("job_id", metavar="ID")
@pass_state
def retry(state: State, job_id: str) -> None:
    """Restart a failed or cancelled job."""
    from lora_reg.formatting.text import short_id

    view = state.client().retry_job(job_id)
    print_job(state, view)
    state.output().next(f"lora-reg job wait {short_id(view.id)}")


@job.command(examples=("lora-reg job wait merge-1f3a9c --timeout 600",))
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Stop waiting after this time, with exit status 8; the jobs continue.",
)
@pass_state
def wait(state: State, job_ids: tuple[str, ...], timeout: float | None) -> None:
    """Wait for jobs to end.

    The exit status is 0 if all of them are done. Ctrl-C ends the wait and leaves the jobs running.
    """
    import time

    from lora_reg.formatting import jobs, views
    from lora_reg.waiting import require_done

    client = state.client()
    deadline = None if timeout is None else time.monotonic() + timeout
    ended = []
    for job_id in job_ids:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ended.append(watch(state, client, job_id, timeout=left))
    for view in ended:
        require_done(view)
    state.output().result(
        "lora-reg/job-wait/1",
        {"items": ended},
        human=[jobs.ended(view) for view in ended],
        quiet=[views.name_of(view.result) if view.result else view.id for view in ended],
    )


def watch(state: State, client: Client, job_id: str, *, timeout: float | None = None) -> JobView:
    """Wait for a job and show its progress on a terminal. Ctrl-C ends the wait, not the job."""
    from lora_reg.cli.bar import JobPhases
    from lora_reg.waiting import follow

    progress = state.progress()

    def unclaimed(view: JobView) -> None:
        progress.end()
        warn_unclaimed(state, view)

    try:
        return interruptible(
            state,
            job_id,
            lambda: follow(client, job_id, timeout=timeout, report=JobPhases(progress), unclaimed=unclaimed),
        )
    finally:
        progress.end()


def warn_unclaimed(state: State, view: JobView) -> None:
    """Say why a job has not started: no worker serves its queue, or all of them are busy."""
    if view.waiting_for:
        state.output().warn(
            f"the job waits for {view.waiting_for}; start one with `lora-registry worker --queues {view.queue}`."
        )
    else:
        state.output().note(f"note: the job waits in the queue {view.queue}: all its workers are busy.")


def interruptible(state: State, job_id: str, wait_for: Callable[[], JobView]) -> JobView:
    """Run a wait. If it is interrupted, print how to resume it."""
    from lora_reg.formatting.text import short_id

    try:
        return wait_for()
    except KeyboardInterrupt:
        state.output().note(f"The job is still running; resume waiting with `lora-reg job wait {short_id(job_id)}`.")
        raise


def print_job(state: State, view: JobView) -> None:
    from lora_reg.formatting import jobs

    state.output().result("lora-reg/job/1", view, human=jobs.job(view), quiet=[view.id])
