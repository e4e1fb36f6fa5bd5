"""job list, show, logs, cancel, retry, wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from lora_reg.cli.state import LazyGroup, State, pass_state

if TYPE_CHECKING:
    from lora_contract.wire.jobs import JobProgress, JobView
    from lora_reg.client import Client


@click.group(cls=LazyGroup)
def job() -> None:
    """Jobs: list, show, logs, cancel, retry, wait."""


@job.command("list")
@click.option(
    "--state",
    "wanted",
    type=click.Choice(["queued", "running", "done", "failed", "cancelled"]),
    help="Only jobs in this state.",
)
@click.option("--kind", metavar="KIND", help="Only jobs of this kind.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@pass_state
def list_(state: State, wanted: str | None, kind: str | None, limit: int) -> None:
    """List jobs, newest first."""
    from lora_reg.formatting import views

    found = list(state.client().jobs(state=wanted, kind=kind, limit=limit))
    output = state.output()
    if not found:
        output.note("There is no such job.")
    output.result("lora-reg/job-list/1", {"items": found}, human=views.jobs(found), quiet=[view.id for view in found])


@job.command()
@click.argument("job_id", metavar="ID")
@pass_state
def show(state: State, job_id: str) -> None:
    """Show a job."""
    tell(state, state.client().job(job_id))


@job.command()
@click.argument("job_id", metavar="ID")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@pass_state
def logs(state: State, job_id: str, follow: bool) -> None:
    """Show what a job has told of its progress."""
    from lora_reg.formatting.text import when
    from lora_reg.waiting import follow as wait_for

    client, output = state.client(), state.output()
    items: list[JobProgress] = []

    def line(item: JobProgress) -> str:
        amount = f"  {item.done}/{item.total} {item.unit}".rstrip() if item.total else ""
        return f"{when(item.at)}  {item.step}{amount}  {item.message}".rstrip()

    def tell_now(item: JobProgress) -> None:
        items.append(item)
        if output.mode == "human":
            output.line(line(item))

    if follow:
        ended = interruptible(state, job_id, lambda: wait_for(client, job_id, tell=tell_now)).state
    else:
        while page := client.job_progress(job_id, offset=items[-1].offset + 1 if items else 0):
            for item in page.items:
                tell_now(item)
            ended = page.state
            if not page.items:
                break
    output.result(
        "lora-reg/job-logs/1",
        {"id": job_id, "state": ended, "items": items},
        human=[],
        quiet=[line(item) for item in items],
    )


@job.command()
@click.argument("job_id", metavar="ID")
@pass_state
def cancel(state: State, job_id: str) -> None:
    """Cancel a job."""
    tell(state, state.client().cancel_job(job_id))


@job.command()
@click.argument("job_id", metavar="ID")
@pass_state
def retry(state: State, job_id: str) -> None:
    """Start a failed or cancelled job again."""
    tell(state, state.client().retry_job(job_id))
    state.output().next(f"lora-reg job wait {job_id}")


@job.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Give up after so long, with exit status 8; the jobs go on.",
)
@pass_state
def wait(state: State, job_ids: tuple[str, ...], timeout: float | None) -> None:
    """Wait for jobs to end.

    The exit status is 0 when all of them ended well. Ctrl-C leaves them running.
    """
    import time

    from lora_reg.formatting import views
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
        human=[
            f"{view.id}  {view.state}  {views.label(view.result) if view.result else ''}".rstrip() for view in ended
        ],
        quiet=[views.name_of(view.result) if view.result else view.id for view in ended],
    )


def watch(state: State, client: Client, job_id: str, *, timeout: float | None = None) -> JobView:
    """Wait for a job with its progress on the terminal. Ctrl-C ends the wait, not the job."""
    from lora_reg.cli.bar import JobTeller
    from lora_reg.waiting import follow

    progress = state.progress()
    try:
        return interruptible(state, job_id, lambda: follow(client, job_id, timeout=timeout, tell=JobTeller(progress)))
    finally:
        progress.end()


def interruptible(state: State, job_id: str, wait_for: Callable[[], JobView]) -> JobView:
    """Run a wait; when it is interrupted, say how it is taken up again."""
    try:
        return wait_for()
    except KeyboardInterrupt:
        state.output().note(f"The job {job_id} goes on; take the wait up again with: lora-reg job wait {job_id}")
        raise


def tell(state: State, view: JobView) -> None:
    from lora_reg.formatting import views

    state.output().result("lora-reg/job/1", view, human=views.job(view), quiet=[view.id])
