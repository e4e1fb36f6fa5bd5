"""`lora-registry`: the service's own command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lora_contract import __version__
from lora_contract.startup import importing
from lora_registry.cli_access import namespace, token
from lora_registry.cli_backup import backup, restore
from lora_registry.cli_frame import data_option, exit_on_error, load
from lora_registry.cli_trust import trust
from lora_registry.runtime.durations import parse_duration


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lora-registry")
def main() -> None:
    """Run and administer the lora-reg service: API, job workers, database, tokens."""


def command(function: Callable[..., Any]) -> Any:
    """Register a command of `lora-registry`."""
    return main.command()(exit_on_error(function))


@command
@data_option
@click.option("--host", help="Address to listen on (LORA_REG_HOST; default 127.0.0.1).")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on (LORA_REG_PORT; default 8750; 0: any free port)."
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="API processes.")
def serve(data: Path | None, host: str | None, port: int | None, workers: int) -> None:
    """Serve the API and, on the embedded default (SQLite), run one job worker.

    Without any setting: SQLite and blobs in ./lora-reg-data, loopback only, no login. Ctrl-C stops both.
    """
    with importing():
        from lora_registry import serving

    config = load(data=data, host=host, port=port)
    sys.exit(serving.serve(config, processes=workers))


@command
@data_option
@click.option("--queues", default="cpu", show_default=True, help="Comma-separated queues to take jobs from.")
@click.option("--name", help="Worker name; after a restart, a worker of this name resumes its jobs at once.")
@click.option("--parent", type=int, hidden=True, help="Stop when this process ends.")
def worker(data: Path | None, queues: str, name: str | None, parent: int | None) -> None:
    """Run a job worker without the API."""
    with importing():
        from lora_registry.worker import main as worker_main

    config = load(data=data)
    worker_main.work(config, queues=tuple(queue.strip() for queue in queues.split(",")), name=name, parent=parent)


@command
@data_option
def migrate(data: Path | None) -> None:
    """Migrate the database to the newest schema.

    Safe to run twice, and on several machines at once.
    """
    with importing():
        from lora_registry import admin

    config = load(data=data)
    admin.migrate(config)
    click.echo("The database is at the newest schema.")


@command
@data_option
def check(data: Path | None) -> None:
    """Check settings, database and blob store."""
    with importing():
        from lora_registry import admin

    config = load(data=data)
    config.check_exposure()
    for line in admin.check(config):
        click.echo(line)


@command
@data_option
@click.option("--repair", is_flag=True, help="Mark damaged and missing blobs, so that the next push stores them again.")
@click.option(
    "--sample",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Share of the blobs to re-hash, chosen at random; of the others only presence and length are checked.",
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Read at most this many MB per second.")
def fsck(data: Path | None, repair: bool, sample: float, rate: float | None) -> None:
    """Compare the blobs with the database, both ways; exit 7 if one is missing or damaged.

    Re-hashes what is stored. Objects that no row names are counted; `gc` removes them.
    """
    with importing():
        from lora_registry import admin

    config = load(data=data)
    damaged = orphans = 0
    for number, found in enumerate(
        admin.fsck(config, repair=repair, sample=sample, rate=None if rate is None else rate * 1e6), 1
    ):
        if found.problem == "orphan":
            orphans += 1
        elif found.problem:
            damaged += 1
            users = ", ".join((*found.others, *found.derived)) or "no version"
            click.echo(f"{found.where}: {found.problem}, needed by {users}")
            if found.others:
                click.echo("  push its files again to repair it")
            for name in found.derived:
                click.echo(f"  lora-reg reproduce {name}  derives it again")
        elif found.was != "ok":
            click.echo(f"{found.where}: was {found.was}, is right now")
        elif number % 1000 == 0 and sys.stderr.isatty():
            click.echo(f"{number} blobs checked", err=True)
    if orphans:
        click.echo(
            f"{orphans} objects belong to no blob; they are of unfinished pushes and jobs, or `gc` removes them."
        )
    click.echo("All blobs match their digests." if not damaged else f"{damaged} blobs are missing or damaged.")
    if damaged:
        sys.exit(7)


def _seconds(text: str | None) -> float | None:
    return None if text is None else 0.0 if text in ("0", "0s") else parse_duration(text)


@command
@data_option
@click.option("--dry-run", is_flag=True, help="Only report what would be removed.")
@click.option(
    "--grace",
    metavar="TIME",
    help="Keep what nothing needs for so long, as in 24h, 30m or 90s (default: LORA_REG_GC_GRACE_SECONDS).",
)
def gc(data: Path | None, dry_run: bool, grace: str | None) -> None:
    """Remove stored bytes that nothing needs, and records older than is kept, while the service runs.

    Bytes that nothing needs are condemned by one run, and removed by the first run after the grace period. Old events,
    decisions, reports and jobs are written to files before they are removed (LORA_REG_KEEP_*_DAYS,
    LORA_REG_RECORDS_URL). Workers do the same every LORA_REG_GC_SECONDS.
    """
    with importing():
        from lora_registry import admin

    config = load(data=data)
    done = admin.gc(config, dry_run=dry_run, grace=_seconds(grace))
    would = "would be " if dry_run else ""
    click.echo(f"{done.removed} blobs ({done.removed_bytes} bytes) {would}removed.")
    click.echo(f"{done.orphans} left over objects ({done.orphan_bytes} bytes) {would}removed.")
    click.echo(f"{done.condemned} blobs {would}condemned: removed after the grace period, unless something needs them.")
    if dry_run:
        for kind, number in admin.due_records(config).items():
            click.echo(f"{number} {kind} would be exported and removed.")
    else:
        kept = admin.keep_records(config)
        for file in kept.files:
            click.echo(f"{file.removed} {file.kind} removed, exported to {file.file}")
        click.echo(f"{kept.removed} old records removed.")
    if done.failed:
        click.echo(f"{done.failed} objects could not be removed; the next run tries again.", err=True)
        sys.exit(10)


main.add_command(backup)
main.add_command(restore)
main.add_command(token)
main.add_command(namespace)
main.add_command(trust)


if __name__ == "__main__":
    main()
