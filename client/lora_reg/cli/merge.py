"""merge: by a job of the registry, or on this machine."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_reg.cli.state import Command, State, pass_state
from lora_reg.cli.text import plural
from lora_reg.spec.errors import RegistryError

if TYPE_CHECKING:
    from lora_reg.progress import Progress
    from lora_reg.spec.wire.jobs import JobView

_DTYPES = click.Choice(["bfloat16", "float16", "float32"])


@click.command(cls=Command)
@click.argument("adapters", nargs=-1, required=True, metavar="REF[=W]...")
@click.option("--to", metavar="REF", help="The repository that the merged model becomes a version of.")
@click.option("--base", metavar="REF", help="The base to merge into; without it, the one that the first adapter pins.")
@click.option("--dtype", type=_DTYPES, help="Of every touched tensor; without it, each keeps its own.")
@click.option("--tag", "tags", multiple=True, metavar="T", help="A tag to set on the result; may be repeated.")
@click.option("--message", "-m", default="", help="A word on the result.")
@click.option("--allow-loss", is_flag=True, help="Take a result whose rounding loses much of the adapters.")
@click.option("--detach", is_flag=True, help="Do not wait; print the job's id.")
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Stop waiting after so long, with exit status 8; the job goes on.",
)
@click.option("--local", is_flag=True, help="Merge folders on this machine: --base-dir DIR ADAPTER_DIR[=W]... -o DIR.")
@click.option("--base-dir", metavar="DIR", help="With --local: the folder of the base.")
@click.option("--output", "-o", metavar="DIR", help="With --local: the folder to write.")
@pass_state
def merge(
    state: State,
    adapters: tuple[str, ...],
    to: str | None,
    base: str | None,
    dtype: str | None,
    tags: tuple[str, ...],
    message: str,
    allow_loss: bool,
    detach: bool,
    timeout: float | None,
    local: bool,
    base_dir: str | None,
    output: str | None,
) -> None:
    """Merge adapters into their base, by a job or on this machine.

    W is the adapter's weight in the sum, 1 where it is not given. The same merge asked for again is the same job and
    the same result.
    """
    if local:
        _refuse(
            {"--to": to, "--base": base, "--tag": tags, "--detach": detach, "--timeout": timeout, "--message": message},
            "--local",
        )
        if base_dir is None or output is None:
            raise click.UsageError("--local needs --base-dir DIR and -o DIR.")
        _merge_here(state, Path(base_dir), adapters, Path(output), dtype, allow_loss)
        return
    _refuse({"--base-dir": base_dir, "--output": output}, "a merge by a job")
    if to is None:
        raise click.UsageError("--to REF says where the merged model goes.")
    _merge_by_job(state, adapters, to, base, dtype, tags, message, allow_loss, detach, timeout)


def _merge_by_job(
    state: State,
    adapters: tuple[str, ...],
    to: str,
    base: str | None,
    dtype: Any,
    tags: tuple[str, ...],
    message: str,
    allow_loss: bool,
    detach: bool,
    timeout: float | None,
) -> None:
    from lora_reg.cli.jobs import tell, watch
    from lora_reg.jobs import require_done
    from lora_reg.spec.wire.operations import MergeRequest, WeightedAdapter

    client = state.client()
    target = client.parse(to)
    if target.is_pinned:
        raise click.UsageError(f"--to {to}: the version's number is given by the server; name the repository alone.")
    weighted = [_weighted(text) for text in adapters]
    job = client.merge(
        MergeRequest(
            adapters=[WeightedAdapter(adapter=str(client.parse(text)), weight=weight) for text, weight in weighted],
            to=target.repository,
            base=None if base is None else str(client.parse(base)),
            dtype=dtype,
            tags=list(dict.fromkeys((*tags, *((target.tag,) if target.tag else ())))),
            message=message,
            allow_loss=allow_loss,
        )
    )
    if detach:
        tell(state, job)
        state.output().next(f"lora-reg job wait {job.id}")
        return
    state.output().note(f"job {job.id}")
    _tell_result(state, require_done(job if job.state == "done" else watch(state, client, job.id, timeout=timeout)))


def _tell_result(state: State, job: JobView) -> None:
    from lora_reg.cli import views

    output = state.output()
    output.result(
        "lora-reg/merge/1",
        {"job": job, "version": job.result},
        human=[views.label(job.result) if job.result else f"{job.id}  {job.state}"],
        quiet=[views.name_of(job.result) if job.result else job.id],
    )
    if job.result:
        output.next(f"lora-reg pull {views.name_of(job.result)} -o DIR")


def _merge_here(
    state: State, base_dir: Path, adapters: tuple[str, ...], output: Path, dtype: str | None, allow_loss: bool
) -> None:
    weighted = [(Path(text), weight) for text, weight in (_weighted(text, folders=True) for text in adapters)]
    for folder in (base_dir, *(folder for folder, _ in weighted)):
        if not folder.is_dir():
            raise RegistryError(
                "usage",
                f"There is no folder {str(folder)!r}.",
                way_out="Name folders; references are merged without --local.",
            )
    merging = _kernels()
    progress = state.progress()
    options: dict[str, Any] = {"min_kept": None} if allow_loss else {}
    try:
        report = merging.merge_folder(base_dir, weighted, output, dtype=dtype, progress=_Written(progress), **options)
    finally:
        progress.end()
    kept = "" if report.kept is None else f"; {report.kept:.1%} of the update kept, cosine {report.cosine or 0:.4f}"
    state.output().result(
        "lora-reg/merge-local/1",
        {"output": str(output), "report": report},
        human=[f"{output}  {plural(len(report.files), 'file')}, {plural(len(report.tensors), 'tensor')} touched{kept}"],
        quiet=[str(output)],
    )


class _Written:
    """Bytes written so far, told by several threads, as steps of a bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._done: int | None = None

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            if self._done is None:
                self._done = 0
                self._progress.begin("Merging", total)
            if done > self._done:
                self._progress.advance(done - self._done)
                self._done = done


def _kernels() -> Any:
    # By name: the client does not depend on the kernels, and is installed without them.
    from importlib import import_module

    try:
        return import_module("lora_kernels.merging")
    except ImportError as error:
        raise RegistryError(
            "usage",
            f"Merging on this machine needs {error.name or 'a package'}, which is not installed.",
            way_out="Install it with `pip install 'lora-reg[worker]'`.",
        ) from error


def _refuse(given: dict[str, Any], what: str) -> None:
    for option, value in given.items():
        if value:
            raise click.UsageError(f"{option} does not go with {what}.")


def _weighted(text: str, *, folders: bool = False) -> tuple[str, float]:
    """Split `REF=W`. A folder may have '=' in its name: what exists as it stands is taken whole."""
    name, equals, weight = text.rpartition("=")
    if not equals or (folders and Path(text).is_dir()):
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not name:
        raise click.BadParameter(f"{text!r}: the weight must be a finite number.", param_hint="REF[=W]")
    return name, value
