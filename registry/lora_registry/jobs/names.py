"""Hide names in texts of jobs and reports: versions that they mention and that a caller may not read."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from sqlmodel import Session

from lora_registry.auth.principals import Principal
from lora_registry.db.tables import JobRow
from lora_registry.repositories import store, views

HIDDEN: Final = "(hidden)"


def hidden_mentions(session: Session, principal: Principal, rows: Sequence[JobRow]) -> dict[str, set[str]]:
    """Map the ids of jobs to the names in their texts that the caller may not read, with one query for all jobs."""
    mentions: dict[str, list[tuple[int, str]]] = {row.id: json.loads(row.mentions) for row in rows}
    readable = _readable(session, principal, {key for found in mentions.values() for key, _ in found})
    return {
        job_id: {text for key, text in found if readable is not None and key not in readable}
        for job_id, found in mentions.items()
    }


def hidden_parents(session: Session, principal: Principal, version_id: int) -> set[str]:
    """Return the names of versions from which a version derives, or on which it was evaluated, that the caller may not
    read, as reports have them."""
    ids = {edge.parent_id for edge in store.edges_up(session, [version_id])}
    readable = _readable(session, principal, ids)
    if readable is None:
        return set()
    refs = views.refs(session, list(store.versions_by_id(session, ids - readable).values()))
    return {f"{ref.namespace}/{ref.name}:v{ref.number}" for ref in refs.values()}


def redact(text: str, hidden: Collection[str]) -> str:
    """Replace names in a text."""
    if not hidden:
        return text
    names = "|".join(re.escape(name) for name in sorted(hidden, key=len, reverse=True))
    return re.sub(rf"(?<![\w./-])(?:{names})(?![\w/-])", HIDDEN, text)


def _readable(session: Session, principal: Principal, ids: Iterable[int]) -> set[int] | None:
    """None: all."""
    scope, wanted = principal.visible(), set(ids)
    return None if scope.is_all or not wanted else store.readable(session, wanted, scope)
