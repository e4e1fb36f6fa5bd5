"""Convert rows to wire structs. Pure except for queries that load the related rows of a whole page at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence, Set
from typing import Any

from sqlmodel import Session

from lora_contract.wire.repositories import HubLocation, RepositoryView, VersionFile, VersionRef, VersionView
from lora_registry.auth.principals import Principal
from lora_registry.bases import store as base_store
from lora_registry.db.tables import Repository, Version, WeightSource
from lora_registry.jobs import store as job_store
from lora_registry.repositories import store
from lora_registry.runtime.clock import iso
from lora_registry.tags import store as tag_store


def ref(repo: Repository, version: Version) -> VersionRef:
    return VersionRef(
        namespace=repo.namespace,
        name=repo.shown,
        kind=repo.kind,  # type: ignore[arg-type]
        number=version.number,
        digest=version.digest,
        created_at=iso(version.created_at),
    )


def refs(session: Session, versions: Sequence[Version]) -> dict[int, VersionRef]:
    """Map version ids to references, with one query for all repositories."""
    repos = store.repositories_by_id(session, (version.repository_id for version in versions))
    return {version.id: ref(repos[version.repository_id], version) for version in versions}


def readable_refs(session: Session, principal: Principal, ids: Iterable[int]) -> dict[int, VersionRef]:
    """Map the ids of versions that the caller may read to references: what it may not read is not named."""
    scope = principal.visible()
    wanted = set(ids)
    found = wanted if scope.is_all or not wanted else store.readable(session, wanted, scope)
    return refs(session, list(store.versions_by_id(session, found).values()))


def version(session: Session, principal: Principal, repo: Repository, row: Version) -> VersionView:
    return versions(session, principal, repo, [row])[0]


def versions(session: Session, principal: Principal, repo: Repository, rows: Sequence[Version]) -> list[VersionView]:
    """Show versions of a repository that the caller may read; parents that it may not read are left out."""
    ids = [row.id for row in rows]
    tags = tag_store.tags_of_versions(session, ids)
    files = store.files_of(session, ids)
    edges = store.edges_up(session, ids)
    rendered = base_store.rendered_templates(session, ids) if repo.kind == "base" else {}
    sources = base_store.weight_sources(session, [row.id for row in rows if row.weights_absent])
    names = readable_refs(session, principal, {edge.parent_id for edge in edges})
    result = []
    for row in rows:
        parents = [
            names[edge.parent_id]
            for edge in edges
            if edge.child_id == row.id and edge.relation != "base" and edge.parent_id in names
        ]
        result.append(
            VersionView(
                namespace=repo.namespace,
                name=repo.shown,
                kind=repo.kind,  # type: ignore[arg-type]
                number=row.number,
                digest=row.digest,
                commit=row.commit_id,
                created_at=iso(row.created_at),
                author=row.author,
                message=row.message,
                meta=json.loads(row.meta),
                size=row.size,
                files=[
                    VersionFile(path=file.path, size=file.size, digest=file.digest) for file in files.get(row.id, [])
                ],
                tags=tags.get(row.id, []),
                base=names.get(row.base_version_id) if row.base_version_id else None,
                parents=parents,
                recipe=job_store.recipe_body(session, row.recipe_digest) if row.recipe_digest else None,
                facts=_facts(row, rendered.get(row.id)),
                yanked=row.yanked_reason,
                weights_absent=row.weights_absent,
                weights_at=_location(sources.get(row.id)),
            )
        )
    return result


def _location(source: WeightSource | None) -> HubLocation | None:
    if source is None:
        return None
    return HubLocation(endpoint=source.endpoint, repository=source.repository, commit=source.commit_id)


def _facts(row: Version, rendered_template: str | None) -> dict[str, Any] | None:
    facts: dict[str, Any] | None = json.loads(row.facts) if row.facts else None
    if facts is not None and rendered_template is not None:
        facts["rendered_template"] = rendered_template
    return facts


def repository(session: Session, repo: Repository, only: Set[int] | None = None) -> RepositoryView:
    """only: ids of the versions that the caller may read; None: all."""
    newest = store.newest(session, repo.id, only)
    tags = [tag for tag in tag_store.tags(session, [repo.id]) if only is None or tag.version_id in only]
    numbers = {key: row.number for key, row in store.versions_by_id(session, (tag.version_id for tag in tags)).items()}
    return RepositoryView(
        namespace=repo.namespace,
        name=repo.shown,
        kind=repo.kind,  # type: ignore[arg-type]
        created_at=iso(repo.created_at),
        versions=store.count_live_versions(session, repo.id, only),
        latest=ref(repo, newest) if newest else None,
        tags={tag.name: numbers[tag.version_id] for tag in tags},
        aliases=base_store.aliases(session, repo.id) if repo.kind == "base" else [],
    )
