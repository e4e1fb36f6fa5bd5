"""list, show, history."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lora_reg.cli.state import Command, State, pass_state

if TYPE_CHECKING:
    from lora_contract.wire.repositories import RepositoryView
    from lora_reg.cli.output import Output

_KINDS = click.Choice(["base", "adapter", "model", "dataset"])


@click.command("list", cls=Command, examples=("lora-reg list", "lora-reg list 'acme/sql-*' --kind adapter"))
@click.argument("pattern", required=False)
@click.option("--kind", type=_KINDS, help="List repositories of this kind only.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Maximum number of repositories.")
@pass_state
def list_(state: State, pattern: str | None, kind: str | None, limit: int | None) -> None:
    """List repositories.

    PATTERN is a glob such as 'acme/sql-*'.
    """
    found = list(state.client().repositories(pattern=pattern, kind=kind, limit=limit))
    nothing = f"No repository matches {pattern!r}." if pattern else "There are no repositories yet."
    print_repositories(state.output(), found, nothing, "lora-reg push DIR --base NAME")


def print_repositories(output: Output, found: list[RepositoryView], nothing: str, then: str) -> None:
    """Print a list of repositories. If it is empty, print `nothing` and the command that adds the first."""
    from lora_reg.formatting import views

    if not found:
        output.note(nothing)
        output.next(then)
    output.result(
        "lora-reg/repository-list/1",
        {"items": found},
        human=views.repositories(found),
        quiet=[f"{view.namespace}/{view.name}" for view in found],
    )


@click.command(cls=Command, examples=("lora-reg show acme/sql-writer:prod",))
@click.argument("ref")
@pass_state
def show(state: State, ref: str) -> None:
    """Show a version: its files, base, tags and facts."""
    from lora_reg.cli.output import to_object
    from lora_reg.formatting import views

    client = state.client()
    view = client.version(ref)
    signatures = list(client.signatures(f"{view.namespace}/{view.name}@{view.digest}"))
    state.output().result(
        "lora-reg/version/1",
        {**to_object(view), "signatures": to_object(signatures)},
        human=[*views.version(view), *views.signatures(signatures)],
        quiet=[views.name_of(view)],
    )


@click.command(cls=Command, examples=("lora-reg history acme/sql-writer", "lora-reg history acme/sql-writer:prod"))
@click.argument("name")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Maximum number of versions, and of moves.")
@pass_state
def history(state: State, name: str, limit: int | None) -> None:
    """Show the versions of a repository and the moves of its tags.

    The newest are first. NAME:TAG shows only the moves of one tag.
    """
    from lora_reg.formatting import views

    client = state.client()
    ref = client.parse(name)
    versions = [] if ref.tag else list(client.versions(ref, limit=limit))
    moves = list(client.history(ref, tag=ref.tag, limit=limit))
    blank = [""] if versions and moves else []
    state.output().result(
        "lora-reg/history/1",
        {"repository": ref.repository, "tag": ref.tag, "versions": versions, "moves": moves},
        human=[*views.versions(versions), *blank, *views.moves(moves)],
        quiet=[views.name_of(view) for view in versions] or [str(move.to_digest or "-") for move in moves],
    )
