"""lineage: as a tree, as JSON, as a graph for dot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from lora_reg.cli.state import Command, State, pass_state

if TYPE_CHECKING:
    from lora_contract.wire.repositories import Lineage
    from lora_reg.client import Client

_RECIPES: Final = 100
"""Derived versions whose recipe is looked up for the text."""


@click.command(
    cls=Command,
    examples=("lora-reg lineage acme/both", "lora-reg lineage acme/both --format dot | dot -Tsvg > both.svg"),
)
@click.argument("ref")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "dot"]),
    default="text",
    show_default=True,
    help="Output format.",
)
@pass_state
def lineage(state: State, ref: str, form: str) -> None:
    """Show what a version was made from and what was made from it.

    Derived versions are shown with their operation, method and parameters.
    """
    from lora_reg.formatting.lineage import dot, tree

    client = state.client()
    found = client.lineage(ref)
    state.json = state.json or form == "json"
    output = state.output()
    human: list[str] = []
    if output.mode == "human":
        human = list(dot(found) if form == "dot" else tree(found, _recipes(client, found), unicode=output.unicode))
    if found.truncated:
        output.note("note: the graph is larger than what is shown.")
    output.result("lora-reg/lineage/1", found, human=human, quiet=sorted(found.nodes))


def _recipes(client: Client, found: Lineage) -> dict[str, dict[str, Any]]:
    """The recipes of the derived versions, the root's first."""
    derived = sorted(
        {edge.child for edge in found.edges if edge.relation == "input"}, key=lambda node: node != found.root
    )
    views = {
        node: client.version(f"{found.nodes[node].namespace}/{found.nodes[node].name}@{found.nodes[node].digest}")
        for node in derived[:_RECIPES]
    }
    return {node: view.recipe for node, view in views.items() if view.recipe}
