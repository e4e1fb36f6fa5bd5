"""pull."""

from __future__ import annotations

import click

from lora_reg.cli.state import Command, State, pass_state


@click.command(
    cls=Command,
    examples=(
        "lora-reg pull acme/sql-writer:prod -o ./sql-writer",
        "lora-reg pull acme/sql-writer:v3 --quiet",
        "lora-reg pull acme/sql-writer:prod --offline",
    ),
)
@click.argument("ref")
@click.option("--output", "-o", "folder", metavar="DIR", help="Folder to write (default: a folder in the cache).")
@click.option(
    "--offline", is_flag=True, default=None, help="Work offline, using the last resolved version in the cache."
)
@click.option(
    "--format", "form", type=click.Choice(["peft"]), default="peft", show_default=True, help="Format of the files."
)
@pass_state
def pull(state: State, ref: str, folder: str | None, offline: bool | None, form: str) -> None:
    """Download a version into a folder or into the cache.

    The files are byte for byte those that were pushed. An interrupted download is resumed. Nothing becomes visible
    before its digest is verified. If everything is cached, a pull costs one small request.
    """
    from lora_reg.formatting.text import plural, short, size
    from lora_reg.transfer.pull import pull as run

    output = state.output()
    got = run(state.client(), ref, output=folder, offline=offline, progress=state.progress(), warn=output.warn)
    if got.yanked:
        output.warn(f"this version was yanked: {got.yanked}")
    if got.resolved_at:
        output.note(f"note: offline; {got.reference} as resolved at {got.resolved_at}.")
    number = f":v{got.number}" if got.number else ""
    output.result(
        "lora-reg/pull/1",
        {
            "reference": got.reference,
            "namespace": got.namespace,
            "name": got.name,
            "number": got.number or None,
            "digest": got.digest,
            "path": str(got.path),
            "format": form,
            "files": got.files,
            "size": got.size,
            "fetched": got.fetched,
            "written": got.written,
            "yanked": got.yanked,
            "resolved_at": got.resolved_at,
        },
        human=[
            f"{got.namespace}/{got.name}{number}  {short(got.digest)}  {'pulled' if got.written else 'already there'}",
            f"  {plural(len(got.files), 'file')}, {size(got.size)}; {size(got.fetched)} fetched",
            f"  {got.path}",
        ],
        quiet=[str(got.path)],
    )
