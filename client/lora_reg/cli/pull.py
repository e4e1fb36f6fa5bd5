"""pull."""

from __future__ import annotations

import click

from lora_reg.cli.state import Command, State, pass_state


@click.command(cls=Command)
@click.argument("ref")
@click.option("--output", "-o", "folder", metavar="DIR", help="Write the files there; without it, into the cache.")
@click.option("--offline", is_flag=True, default=None, help="Ask nobody: serve what REF meant when it was last pulled.")
@click.option(
    "--format", "form", type=click.Choice(["peft"]), default="peft", show_default=True, help="The form of the files."
)
@pass_state
def pull(state: State, ref: str, folder: str | None, offline: bool | None, form: str) -> None:
    """Get a version into a folder or into the cache.

    What comes out is byte for byte what went in. A broken download is taken up again; nothing is visible before its
    digest is checked. When all is there already, one small request is all it costs.
    """
    from lora_reg.formatting.text import plural, short, size
    from lora_reg.transfer.pull import pull as run

    got = run(state.client(), ref, output=folder, offline=offline, progress=state.progress())
    output = state.output()
    if got.yanked:
        output.note(f"warning: this version was yanked: {got.yanked}")
    if got.resolved_at:
        output.note(f"note: offline; {got.reference} as it was at {got.resolved_at}.")
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
