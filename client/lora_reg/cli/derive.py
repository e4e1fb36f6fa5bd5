"""Shared by merge, compose, extract and resize: options, waiting for the job, work on this machine."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lora_contract.devices import DEVICES
from lora_contract.errors import RegistryError
from lora_contract.recipe import OUTPUT_DTYPES
from lora_reg.cli.state import State

if TYPE_CHECKING:
    from lora_contract.wire.jobs import JobView
    from lora_reg.client import Client
    from lora_reg.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])

DTYPES = click.Choice(OUTPUT_DTYPES)


def device_option(command: F) -> F:
    """Add `--device` to a command; None if it is not given."""
    option = click.option(
        "--device",
        type=click.Choice(DEVICES),
        help="Device that computes; auto: the one that is likely to be faster (default: cpu).",
    )
    return option(command)


@dataclass(frozen=True, slots=True)
class Where:
    """Destination of the result. Of a job: to, tags, message, detach, timeout; on this machine: local and output."""

    to: str | None
    tags: tuple[str, ...]
    message: str
    detach: bool
    timeout: float | None
    local: bool
    output: str | None

    def here(self) -> Path | None:
        """The folder to write if the work is done on this machine, else None. Raises UsageError if options conflict."""
        if not self.local:
            refuse({"--output": self.output}, "a job")
            if self.to is None:
                raise click.UsageError("--to REF is missing: the repository of the result.")
            return None
        refuse(
            {
                "--to": self.to,
                "--tag": self.tags,
                "--detach": self.detach,
                "--timeout": self.timeout,
                "--message": self.message,
            },
            "--local",
        )
        if self.output is None:
            raise click.UsageError("--local needs -o DIR, the folder to write.")
        return Path(self.output)


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--to", metavar="REF", help="Repository that the result is committed to."),
    click.option("--tag", "tags", multiple=True, metavar="T", help="Tag to set on the result; may be repeated."),
    click.option("--message", "-m", default="", metavar="TEXT", help="Version message of the result."),
    click.option("--detach", is_flag=True, help="Do not wait for the job; print its id."),
    click.option(
        "--timeout",
        type=click.FloatRange(0),
        metavar="SECONDS",
        help="Stop waiting after this time, with exit status 8; the job continues.",
    ),
    click.option("--local", is_flag=True, help="Work on local folders, without a registry; needs -o DIR."),
    click.option("--output", "-o", metavar="DIR", help="With --local: folder to write."),
)


def where_options(command: F) -> F:
    """Add the options of `Where`, passed to the command as `where`."""

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> Any:
        names = Where.__dataclass_fields__
        where = Where(**{name: given.pop(name) for name in names})
        return command(*args, where=where, **given)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run  # type: ignore[return-value]  # the same but for its options


def by_job(
    state: State,
    where: Where,
    submit: Callable[[Client, dict[str, Any]], JobView],
    *,
    schema: str,
    shown: Callable[[Client, JobView], list[str]] = lambda _client, _job: [],
) -> None:
    """Submit a job, wait for it, and print its result.

    Args:
        submit: sends the request; called with its `to`, `tags` and `message`.
        schema: of the JSON document.
        shown: more lines about the result, for people.
    """
    from lora_reg.cli.jobs import print_job, watch
    from lora_reg.formatting import views
    from lora_reg.formatting.jobs import ended
    from lora_reg.formatting.text import short_id
    from lora_reg.waiting import require_done

    client, output = state.client(), state.output()
    target = client.parse(where.to or "")
    if target.is_pinned:
        raise click.UsageError(
            f"--to {where.to} names a version; the server assigns version numbers. Name only the repository."
        )
    tags = list(dict.fromkeys((*where.tags, *((target.tag,) if target.tag else ()))))
    job = submit(client, {"to": target.repository, "tags": tags, "message": where.message})
    if where.detach:
        print_job(state, job)
        output.next(f"lora-reg job wait {short_id(job.id)}")
        return
    output.note(f"job {short_id(job.id)}")
    job = require_done(job if job.state == "done" else watch(state, client, job.id, timeout=where.timeout))
    name = views.name_of(job.result) if job.result else job.id
    human: list[str] = [ended(job)]
    if output.mode == "human":
        human += shown(client, job)
    output.result(schema, {"job": job, "version": job.result}, human=human, quiet=[name])
    if job.result:
        output.next(f"lora-reg push DIR --base {name}" if job.result.kind == "base" else f"lora-reg pull {name} -o DIR")


class Counted:
    """The progress callback of the kernels (done, total; from several threads) as a phase of a bar."""

    def __init__(self, progress: Progress, what: str, unit: str = "B") -> None:
        self._progress = progress
        self._what = what
        self._unit = unit
        self._lock = threading.Lock()
        self._done: int | None = None

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            if self._done is None:
                self._done = 0
                self._progress.begin(self._what, total, unit=self._unit)
            if done > self._done:
                self._progress.advance(done - self._done)
                self._done = done


def kernels(module: str, what: str) -> Any:
    """Import a module of the kernels by its name. The client can be installed without them.

    what: the work, for the message. Raises RegistryError `usage` if a package is missing.
    """
    from importlib import import_module

    try:
        return import_module(f"lora_kernels.{module}")
    except ImportError as error:
        raise RegistryError(
            "usage",
            f"{what} on this machine needs {error.name or 'a package'}, which is not installed.",
            hint="Install lora-reg with the extra `worker`.",
        ) from error


def need_folders(*folders: Path) -> None:
    """Raises RegistryError `usage` if one is missing."""
    for folder in folders:
        if not folder.is_dir():
            raise RegistryError(
                "usage",
                f"There is no folder {str(folder)!r}.",
                hint="With --local, name folders; without it, references.",
            )


def refuse(given: dict[str, Any], what: str) -> None:
    """Raises UsageError for options that were given but cannot be used with `what`."""
    for option, value in given.items():
        if value:
            raise click.UsageError(f"{option} cannot be used with {what}.")


def weighted(text: str, *, folders: bool = False) -> tuple[str, float]:
    """Split `REF=W`. A folder may have '=' in its name: an existing folder is not split."""
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


def weighted_folders(texts: tuple[str, ...]) -> list[tuple[Path, float]]:
    """Folders with their weights. Raises RegistryError `usage` if one is missing."""
    found = [(Path(name), weight) for name, weight in (weighted(text, folders=True) for text in texts)]
    need_folders(*(folder for folder, _ in found))
    return found
