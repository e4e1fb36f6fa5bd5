"""lineage: as a tree, as JSON, as a graph for dot."""

from __future__ import annotations

import click

from lora_reg.cli.state import Command, State, pass_state


@click.command(cls=Command)
@click.argument("ref")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "dot"]),
    default="text",
    show_default=True,
    help="The form of the answer.",
)
@pass_state
def lineage(state: State, ref: str, form: str) -> None:
    """Show what a version was made from and what was made from it."""
    from lora_reg.formatting.lineage import dot, tree

    found = state.client().lineage(ref)
    state.json = state.json or form == "json"
    output = state.output()
    human = list(dot(found)) if form == "dot" else list(tree(found, unicode=output.unicode))
    if found.truncated:
        output.note("note: the graph is larger than what is shown.")
    output.result("lora-reg/lineage/1", found, human=human, quiet=sorted(found.nodes))
