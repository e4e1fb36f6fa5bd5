"""Lineage as a tree of lines and as a graph for graphviz. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from lora_contract.wire.repositories import Lineage
from lora_reg.formatting import views

MAX_LINES = 2000
Edges = dict[str, list[tuple[str, str]]]


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
