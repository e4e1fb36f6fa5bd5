"""delete, undelete, retention, yank, unyank."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from lora_contract.errors import RegistryError
from lora_contract.wire.repositories import Lineage
from lora_reg.cli.state import Command, State, pass_state
from lora_reg.formatting import views
from lora_reg.formatting.text import duration, plural, size


@click.command(
    cls=Command,
    examples=(
        "lora-reg delete acme/sql-writer:v2",
        "lora-reg delete acme/old --yes",
        "lora-reg delete acme/sql-writer:v3 --purge --reason 'holds a password'",
    ),
)
@click.argument("ref")
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@click.option("--purge", is_flag=True, help="Free the bytes of the version at once (needs --reason).")
@click.option("--derived", is_flag=True, help="With --purge: delete the versions made from it, too.")
@click.option("--reason", default="", metavar="TEXT", help="Reason of a purge, recorded as an event.")
@pass_state
def delete(state: State, ref: str, yes: bool, purge: bool, derived: bool, reason: str) -> None:
    """Delete a version or a repository.

    REF is NAME:vN or NAME@DIGEST for a version; NAME alone is the repository with all its versions. Numbers and names
    are not reused. A version that a tag points to, or that another version was made from, cannot be deleted.

    Bytes that no other version needs are freed after the registry's grace period; until then `lora-reg undelete`
    restores a version. --purge frees them at once, for secrets and withdrawn licences.
    """
    if (purge or derived) and not reason.strip():
        raise RegistryError("usage", "A purge needs --reason, which is recorded.")
    if derived and not purge:
        raise RegistryError("usage", "--derived needs --purge.")
    client = state.client()
    wanted = client.parse(ref)
    output = state.output()
    if wanted.tag is not None:
        raise RegistryError(
            "usage",
            f"{ref!r} is a tag, not a version.",
            hint=f"Remove the tag with `lora-reg untag {ref}`, or name the version as NAME:vN.",
        )
    if wanted.is_bare and purge:
        raise RegistryError("usage", "Only a version can be purged.", hint=f"Name it as {wanted.repository}:vN.")
    frees = client.deletion(wanted)
    wait = "at once" if purge else f"after {duration(frees.after_seconds)}"
    what = f"{plural(frees.blobs, 'blob')} ({size(frees.bytes)}) that no other version needs"
    if wanted.is_bare:
        output.confirm(
            f"Delete {wanted.repository} with all its {frees.versions} versions? Frees {what} {wait}.", yes=yes
        )
        client.delete_repository(wanted)
        text = wanted.repository
    else:
        text = views.name_of(client.version(wanted))
        output.confirm(f"Delete {text}? Frees {what} {wait}.", yes=yes)
        client.delete_version(wanted, purge=purge, derived=derived, reason=reason)
    human = [f"{text} deleted; {what} {'were' if purge else 'will be'} freed {wait}"]
    if not wanted.is_bare and not purge:
        human.append(f"until then `lora-reg undelete {text}` restores it")
    document = {"deleted": text, "frees": msgspec.to_builtins(frees), "purged": purge}
    output.result("lora-reg/delete/1", document, human=human, quiet=[text])


@click.command(cls=Command, examples=("lora-reg undelete acme/sql-writer:v2",))
@click.argument("ref")
@pass_state
def undelete(state: State, ref: str) -> None:
    """Restore a deleted version while its bytes are kept.

    REF is NAME:vN or NAME@DIGEST. `lora-reg delete` says how long the bytes are kept.
    """
    view = state.client().restore_version(ref)
    state.output().result(
        "lora-reg/version/1", view, human=[f"{views.label(view)}  restored"], quiet=[views.name_of(view)]
    )


@click.command(
    cls=Command,
    examples=(
        "lora-reg retention acme/sql-writer",
        "lora-reg retention acme/sql-writer --keep-last 20 --dry-run",
        "lora-reg retention acme/sql-writer --off",
    ),
)
@click.argument("ref")
@click.option("--keep-last", type=click.IntRange(1, 1_000_000), metavar="N", help="Keep the newest N versions.")
@click.option("--off", is_flag=True, help="Remove the rule: keep every version.")
@click.option("--dry-run", is_flag=True, help="Only show what the rule would delete.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@pass_state
def retention(state: State, ref: str, keep_last: int | None, off: bool, dry_run: bool, yes: bool) -> None:
    """Show or set which versions of a repository are kept.

    A rule keeps the newest N versions, every version that a tag points to, and every version that another one was made
    from. Workers delete the others as `lora-reg delete` does: they can be restored until their bytes are freed.
    """
    client, output = state.client(), state.output()
    if off and keep_last is not None:
        raise RegistryError("usage", "--off and --keep-last exclude each other.")
    wanted = client.parse(ref)
    found = client.retention(wanted, keep_last=keep_last)
    goes = f"deletes {plural(len(found.would_delete), 'version')} now ({size(found.would_free)})"
    if dry_run or not (off or keep_last):
        rule = f"keep the last {keep_last or found.keep_last}" if keep_last or found.keep_last else "keep every version"
        human = [f"{wanted.repository}: {rule}", *([goes] if found.would_delete else [])]
        human += [f"  v{number}" for number in found.would_delete]
    else:
        if keep_last is not None:
            output.confirm(f"Keep the last {keep_last} versions of {wanted.repository}? This {goes}.", yes=yes)
        found = client.set_retention(wanted, keep_last)
        human = [f"{wanted.repository}: keep {f'the last {keep_last}' if keep_last else 'every version'}"]
    output.result("lora-reg/retention/1", found, human=human, quiet=[f"v{number}" for number in found.would_delete])


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
