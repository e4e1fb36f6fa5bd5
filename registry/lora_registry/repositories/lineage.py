"""The graph of versions: ancestors and descendants of a version."""

from __future__ import annotations

from typing import Literal

from sqlmodel import Session

from lora_contract.wire.repositories import Lineage, LineageEdge
from lora_registry.auth.caller import Caller
from lora_registry.db.scope import Scope
from lora_registry.db.tables import Version
from lora_registry.repositories import resolve, store, views
from lora_registry.repositories.paths import VersionPath

MAX_NODES = 2000
Direction = Literal["up", "down", "both"]


def show(caller: Caller, path: VersionPath, *, direction: Direction) -> Lineage:
    """Traverse breadth-first from a version, with two queries per level; stop after MAX_NODES versions.

    Versions that the caller may not read are omitted, with all that is reached only through them.
    """
    with caller.ctx.db.read() as session:
        _, root = resolve.version(session, caller.principal, path)
        edges: set[tuple[int, int, str]] = set()
        seen = {root.id}
        scope = caller.principal.visible()
        if direction in ("up", "both"):
            seen |= _walk(session, scope, root, edges, up=True)
        if direction in ("down", "both"):
            seen |= _walk(session, scope, root, edges, up=False)
        refs = views.refs(session, list(store.versions_by_id(session, seen).values()))
        keys = {key: f"{ref.namespace}/{ref.name}:v{ref.number}" for key, ref in refs.items()}
        return Lineage(
            root=keys[root.id],
            nodes={keys[key]: ref for key, ref in sorted(refs.items())},
            edges=[
                LineageEdge(child=keys[child], parent=keys[parent], relation=relation)
                for child, parent, relation in sorted(edges)
                if child in keys and parent in keys
            ],
            truncated=len(seen) > MAX_NODES,
        )


def _walk(session: Session, scope: Scope, root: Version, edges: set[tuple[int, int, str]], *, up: bool) -> set[int]:
    seen = {root.id}
    level = set(seen)
    while level and len(seen) <= MAX_NODES:
        found = store.edges_up(session, level) if up else store.edges_down(session, level)
        edges |= {(edge.child_id, edge.parent_id, edge.relation) for edge in found}
        level = {edge.parent_id if up else edge.child_id for edge in found} - seen
        if level and not scope.is_all:
            level = store.readable(session, level, scope)
        seen |= level
    return seen
