"""delete, yank, unyank."""

from __future__ import annotations

from collections.abc import Sequence

import click

from lora_contract.errors import RegistryError
from lora_contract.wire.repositories import Lineage
from lora_reg.cli.state import Command, State, pass_state
from lora_reg.formatting import views
from lora_reg.formatting.text import plural


@click.command(cls=Command, examples=("lora-reg delete acme/sql-writer:v2", "lora-reg delete acme/old --yes"))
@click.argument("ref")
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@pass_state
def delete(state: State, ref: str, yes: bool) -> None:
    """Delete a version or a repository permanently.

    REF is NAME:vN or NAME@DIGEST for a version; NAME alone is the repository with all its versions. Numbers and names
    are not reused. A version that a tag points to, or that another version was made from, cannot be deleted.
    """
    client = state.client()
    wanted = client.parse(ref)
    output = state.output()
    if wanted.tag is not None:
        raise RegistryError(
            "usage",
            f"{ref!r} is a tag, not a version.",
            hint=f"Remove the tag with `lora-reg untag {ref}`, or name the version as NAME:vN.",
        )
    if wanted.is_bare:
        view = client.repository(wanted)
        output.confirm(f"Delete {wanted.repository} with all its {view.versions} versions?", yes=yes)
        client.delete_repository(wanted)
        text = wanted.repository
    else:
        version = client.version(wanted)
        text = views.name_of(version)
        output.confirm(f"Delete {text}?", yes=yes)
        client.delete_version(wanted)
    output.result("lora-reg/delete/1", {"deleted": text}, human=[f"{text} deleted"], quiet=[text])


@click.command(cls=Command, examples=("lora-reg yank acme/sql-writer:v2 --reason 'trained on the wrong data'",))
@click.argument("ref")
@click.option("--reason", required=True, metavar="TEXT", help="Reason, shown to everyone who pulls the version.")
@pass_state
def yank(state: State, ref: str, reason: str) -> None:
    """Yank a version: it stays, but pulls of it print a warning.

    Prints what depends on the version: tags, and versions made from it.
    """
    client, output = state.client(), state.output()
    for line in dependents(client.lineage(ref, direction="down"), client.version(ref).tags):
        output.note(line)
    view = client.yank(ref, reason)
    output.result(
        "lora-reg/version/1", view, human=[f"{views.label(view)}  yanked: {view.yanked}"], quiet=[views.name_of(view)]
    )


def dependents(found: Lineage, tags: Sequence[str]) -> list[str]:
    """What a yank affects: tags that point to the version, and the versions made from it."""
    names = sorted(node for node in found.nodes if node != found.root)
    lines = [f"note: the tag {tag} points to this version." for tag in tags]
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        lines.append(f"note: {plural(len(names), 'version')} made from it: {', '.join(names[:8])}{more}.")
    return lines


@click.command(cls=Command, examples=("lora-reg unyank acme/sql-writer:v2",))
@click.argument("ref")
@pass_state
def unyank(state: State, ref: str) -> None:
    """Undo a yank."""
    view = state.client().unyank(ref)
    state.output().result(
        "lora-reg/version/1", view, human=[f"{views.label(view)}  no longer yanked"], quiet=[views.name_of(view)]
    )
