"""lineage: as a tree, as JSON, as a graph for dot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import click

from lora_contract.wire.catalog import Lineage
from lora_reg.cli import views
from lora_reg.cli.state import Command, State, pass_state

MAX_LINES = 2000
Edges = dict[str, list[tuple[str, str]]]


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
    found = state.client().lineage(ref)
    state.json = state.json or form == "json"
    output = state.output()
    human = list(dot(found)) if form == "dot" else list(tree(found, unicode=output.unicode))
    if found.truncated:
        output.note("note: the graph is larger than what is shown.")
    output.result("lora-reg/lineage/1", found, human=human, quiet=sorted(found.nodes))


def tree(found: Lineage, *, unicode: bool = True) -> Iterator[str]:
    """The root, below it what it was made from, and after that what was made from it."""
    up: Edges = defaultdict(list)
    down: Edges = defaultdict(list)
    for edge in found.edges:
        up[edge.child].append((edge.parent, edge.relation))
        down[edge.parent].append((edge.child, edge.relation))
    lines = 0
    root = found.nodes[found.root]
    yield f"{views.label(root)}  {root.kind}"
    for title, edges in (("made from", up), ("used by", down)):
        if not edges[found.root]:
            continue
        yield title
        for line in _branches(found, edges, found.root, "", unicode, frozenset({found.root})):
            lines += 1
            if lines > MAX_LINES:
                yield "…" if unicode else "..."
                return
            yield line


def _branches(
    found: Lineage, edges: Edges, node: str, indent: str, unicode: bool, seen: frozenset[str]
) -> Iterator[str]:
    tee, corner, bar = ("├── ", "└── ", "│   ") if unicode else ("+-- ", "`-- ", "|   ")
    children = sorted(edges[node], key=lambda item: (item[1], item[0]))
    for place, (child, relation) in enumerate(children):
        last = place == len(children) - 1
        text = views.label(found.nodes[child]) if child in found.nodes else child
        yield f"{indent}{corner if last else tee}{relation}: {text}"
        if child not in seen:
            yield from _branches(found, edges, child, indent + ("    " if last else bar), unicode, seen | {child})


def dot(found: Lineage) -> Iterator[str]:
    """The graph in the language of graphviz; arrows go from what was used to what was made."""
    yield "digraph lineage {"
    yield "  rankdir=LR;"
    for digest, node in sorted(found.nodes.items()):
        shape = "box" if node.kind == "base" else "ellipse"
        yield f'  "{digest}" [label="{views.name_of(node)}", shape={shape}];'
    for edge in found.edges:
        yield f'  "{edge.parent}" -> "{edge.child}" [label="{edge.relation}"];'
    yield "}"
