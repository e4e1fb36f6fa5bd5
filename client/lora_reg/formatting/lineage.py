"""Lineage as a tree of lines and as a graph for graphviz. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from lora_contract.wire.repositories import Lineage, VersionRef
from lora_reg.formatting import views
from lora_reg.formatting.text import Line, Word

MAX_LINES: Final = 2000
Edges = dict[str, list[tuple[str, str]]]


def tree(found: Lineage, recipes: Mapping[str, Mapping[str, Any]], *, unicode: bool = True) -> Iterator[str]:
    """Print the root, then what it was made from, then what was made from it.

    recipes: of derived versions, by node. Each version is printed once with its own ancestors or descendants; where it
    appears again, it says so.
    """
    up: Edges = defaultdict(list)
    down: Edges = defaultdict(list)
    for edge in found.edges:
        up[edge.child].append((edge.parent, edge.relation))
        down[edge.parent].append((edge.child, edge.relation))
    lines = 0
    root = found.nodes[found.root]
    yield Line(f"{views.label(root)}  {root.kind}", *_made(recipes.get(found.root)), hang=4)
    for title, edges in (("made from", up), ("used by", down)):
        if not edges[found.root]:
            continue
        yield title
        for line in _branches(found, edges, recipes, found.root, "", unicode, {found.root}):
            lines += 1
            if lines > MAX_LINES:
                yield "…" if unicode else "..."
                return
            yield line


def _branches(
    found: Lineage,
    edges: Edges,
    recipes: Mapping[str, Mapping[str, Any]],
    node: str,
    indent: str,
    unicode: bool,
    seen: set[str],
) -> Iterator[str]:
    tee, corner, bar = ("├── ", "└── ", "│   ") if unicode else ("+-- ", "`-- ", "|   ")
    children = sorted(edges[node], key=lambda item: (item[1], _order(found.nodes.get(item[0]), item[0])))
    for place, (child, relation) in enumerate(children):
        last = place == len(children) - 1
        start = f"{indent}{corner if last else tee}{relation}: "
        if child in seen:
            yield Line(start, child, Word("  (shown above)", "faint"), hang=len(start))
            continue
        seen.add(child)
        text = views.label(found.nodes[child]) if child in found.nodes else child
        yield Line(start, text, *_made(recipes.get(child)), hang=len(start))
        yield from _branches(found, edges, recipes, child, indent + ("    " if last else bar), unicode, seen)


def _order(version: VersionRef | None, node: str) -> tuple[str, str, int]:
    return (version.namespace, version.name, version.number) if version else (node, "", 0)


def _made(recipe: Mapping[str, Any] | None) -> list[str]:
    return [f"  {how(recipe)}"] if recipe else []


def how(recipe: Mapping[str, Any]) -> str:
    """The operation of a recipe with its method and parameters, as `compose: ties, density=0.5`."""
    operation = str(recipe.get("operation", ""))
    named = {"method": recipe.get("method"), **(recipe.get("parameters") or {})}
    names = ("rank", "keep_energy", "vocab", "max_rank", "uniform_rank", "onto", "rounding", "dtype")
    named |= {name: recipe[name] for name in names if name not in named and recipe.get(name)}
    method = named.pop("method")
    inputs = recipe.get("inputs") or ()
    weights = [f"{item['weight']:g}" for item in inputs if isinstance(item, Mapping) and "weight" in item]
    details = [str(method)] if method else []
    details += [f"weights {' '.join(weights)}"] if any(weight != "1" for weight in weights) else []
    details += [f"{name.replace('_', '-')}={_value(value)}" for name, value in named.items() if value is not None]
    return f"{operation}: {', '.join(details)}" if details else operation


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def dot(found: Lineage) -> Iterator[str]:
    """Write the graph for graphviz. Arrows go from what was used to what was made."""
    yield "digraph lineage {"
    yield "  rankdir=LR;"
    for digest, node in sorted(found.nodes.items()):
        shape = "box" if node.kind == "base" else "ellipse"
        yield f'  "{digest}" [label="{views.name_of(node)}", shape={shape}];'
    for edge in found.edges:
        yield f'  "{edge.parent}" -> "{edge.child}" [label="{edge.relation}"];'
    yield "}"
