"""`lora-registry backup` and `lora-registry restore`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lora_contract.startup import importing
from lora_registry.cli_frame import data_option, exit_on_error, load

parallel_option = click.option(
    "--parallel", type=click.IntRange(1, 64), default=4, show_default=True, help="Blobs to transfer at once."
)
id_option = click.option("--id", "backup_id", help="Backup to use (default: the newest).")


@click.command()
@exit_on_error
@click.argument("destination", metavar="DEST")
@click.option("--verify", is_flag=True, help="Take no backup: read the newest one in DEST back and compare digests.")
@id_option
@click.option(
    "--keep",
    type=click.IntRange(1),
    metavar="N",
    help="Afterwards, if nothing is missing, remove all but the newest N backups.",
)
@parallel_option
@data_option
def backup(
    destination: str, verify: bool, backup_id: str | None, keep: int | None, parallel: int, data: Path | None
) -> None:
    """Back up database and blobs to DEST, a folder or s3://bucket/prefix, while the service runs.

    Blobs that DEST has are not copied again; a backup that was interrupted continues with the next one. The exit status
    is 7 if a blob that a version needs is missing or damaged. DEST holds the hashes of tokens: keep it private.
    """
    with importing():
        from lora_registry import admin

    if backup_id is not None and not verify:
        raise click.UsageError("--id needs --verify.")
    if keep is not None and verify:
        raise click.UsageError("--keep cannot be used with --verify.")
    config = load(data=data)
    if verify:
        document, problems = admin.verify_backup(
            config, destination, backup_id=backup_id, parallel=parallel, tell=_tell
        )
        _end(f"{document.id}  verified, {document.blob_count} blobs", problems)
        return
    document = admin.backup(config, destination, keep=keep, parallel=parallel, tell=_tell)
    _end(
        f"{document.id}  as of {document.at}, event {document.event}: {document.blob_count} blobs, "
        f"{document.blob_bytes} bytes",
        dict.fromkeys(document.incomplete, "The store has lost or damaged it."),
    )


@click.command()
@exit_on_error
@click.argument("source", metavar="SRC")
@id_option
@click.option("--existing-store", is_flag=True, help="Keep the blobs that the store has: only its database was lost.")
@parallel_option
@data_option
def restore(source: str, backup_id: str | None, existing_store: bool, parallel: int, data: Path | None) -> None:
    """Restore a backup from SRC into the database and the store of the settings, which must be empty.

    Blobs come first, are read back and compared with their digests; the database comes last, in one step. The exit
    status is 7 if a blob that a live version needs is missing or damaged. If it is interrupted, run it again. Start the
    service afterwards.
    """
    with importing():
        from lora_registry import admin

    found = admin.restore(
        load(data=data),
        source,
        backup_id=backup_id,
        existing_store=existing_store,
        parallel=parallel,
        tell=_tell,
    )
    document = found.document
    _end(
        f"{document.id}  restored as of {document.at}, event {document.event}: {found.verified.blobs} blobs verified",
        found.problems,
    )


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _end(text: str, problems: dict[str, str]) -> None:
    """Print the result; exit with 7 if there are problems."""
    click.echo(text)
    for name, reason in sorted(problems.items()):
        click.echo(f"{name}: {reason}")
    if problems:
        click.echo(f"{len(problems)} blobs are missing or damaged.", err=True)
        sys.exit(7)
