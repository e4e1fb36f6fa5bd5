"""Approvals of a version for a tag. Approvals by the promoter do not count."""

from __future__ import annotations

from collections.abc import Iterable

from lora_contract import reference
from lora_contract.wire.gates import ApprovalView, ApproveRequest
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import origin
from lora_registry.db.tables import Approval
from lora_registry.events import audit
from lora_registry.gates import store
from lora_registry.repositories import resolve
from lora_registry.repositories.paths import RepositoryPath, VersionPath
from lora_registry.runtime.clock import iso, now


def approve(caller: Caller, path: RepositoryPath, request: ApproveRequest) -> ApprovalView:
    """Approve a version for a tag. Repeating it is a no-op, unless the caller's role has changed."""
    reference.check_tag(request.tag)
    caller.require("reader", path.namespace)
    role = caller.principal.role_in(path.namespace)
    with caller.ctx.db.write() as session:
        repo, version = resolve.version(session, caller.principal, VersionPath(path, request.version))
        row = store.approval(session, version.id, request.tag, caller.principal.name)
        if row is None or row.role != role:
            row = Approval(
                version_id=version.id,
                tag=request.tag,
                author=caller.principal.name,
                role=role,
                reason=request.reason,
                created_at=now(),
            )
            session.add(row)
            audit.record(
                session,
                "version-approved",
                principal=caller.principal,
                namespace=repo.namespace,
                subject=f"{repo.label}:v{version.number}",
                tag=request.tag,
                role=role,
                reason=request.reason,
            )
        return ApprovalView(
            namespace=repo.namespace,
            name=repo.shown,
            number=version.number,
            tag=row.tag,
            author=row.author,
            role=row.role,
            created_at=iso(row.created_at),
        )


def of_others(approvals: Iterable[tuple[str, str]], promoter: str) -> list[tuple[str, str]]:
    """Return the approvals (name and role) that count, under one name for each origin: two commits of a pipeline, which
    are callers of two names, neither approve each other nor count twice."""
    names: dict[str, str] = {}
    counting = [(name, role) for name, role in approvals if origin(name) != origin(promoter)]
    return [(names.setdefault(origin(name), name), role) for name, role in counting]
