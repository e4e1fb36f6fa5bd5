"""Gate and promote: judge a case, store what was decided, and move the tag in the transaction that decided it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.findings import Finding
from lora_contract.wire.gates import CheckView, GateRequest, GateView, PromoteRequest, PromotionView
from lora_contract.wire.tags import TagView
from lora_registry.auth.principals import Principal, require
from lora_registry.catalog import gate_store, tags, views
from lora_registry.catalog.tags import Expectation, Warrant
from lora_registry.context import Context
from lora_registry.db.tables import DecisionRow
from lora_registry.events import audit
from lora_registry.gates import intact, validations
from lora_registry.gates.case import Case, Judged, judge, need_weights, open_case
from lora_registry.jobs import service as jobs
from lora_registry.runtime.clock import now
from lora_registry.runtime.faults import fault_point


def gate(ctx: Context, principal: Principal, namespace: str, name: str, request: GateRequest) -> GateView:
    """Decide, or start what is missing for it. A decision is stored, unless its policy was only tried.

    Raises as `open_case` does, and `unsupported` where the base's weights are not stored.
    """
    require(principal, "writer", namespace)
    with ctx.db.write() as session:
        case = open_case(
            session,
            principal,
            namespace,
            name,
            selector=request.version,
            tag=request.tag,
            data=request.data,
            document=request.document,
            lock=True,
        )
        found = judge(session, case, gate_store.approvals(session, case.version.id, case.tag, principal.name))
        view = _view(case, found)
        if found.decision.allowed is None and request.start:
            need_weights(session, found.missing)
            validations.start(ctx, session, principal, case.repo, found.missing, case.sets)
        elif found.decision.allowed is not None and request.document is None:
            view = _record(session, principal, case, found, view)
    return _with_jobs(ctx, principal, view, found, started=request.start)


def promote(ctx: Context, principal: Principal, namespace: str, name: str, request: PromoteRequest) -> PromotionView:
    """Gate and move in one transaction. Where something must be measured first it is started, and nothing moves.

    Raises `gate-refused` with what failed, `corrupt` where stored bytes are not what was evaluated, `tag-moved`,
    `forbidden` for a force by another than an administrator.
    """
    require(principal, "admin" if request.force else "writer", namespace)
    if request.force and not request.reason.strip():
        raise RegistryError("invalid-request", "A promotion by force needs a reason, which is logged with it.")
    moved: TagView | None = None
    asked: dict[str, Any] = {"selector": request.version, "tag": request.tag, "data": request.data}
    with ctx.db.read() as session:
        before = open_case(session, principal, namespace, name, **asked)
    # Outside of the transaction, which would hold the repository's lock for as long as that takes.
    intact.check(ctx, before)
    with ctx.db.write() as session:
        case = open_case(session, principal, namespace, name, **asked, lock=True)
        found = judge(session, case, gate_store.approvals(session, case.version.id, case.tag, principal.name))
        view = _view(case, found)
        if found.decision.allowed is None and not request.force:
            need_weights(session, found.missing)
            validations.start(ctx, session, principal, case.repo, found.missing, case.sets)
        else:
            view = _record(session, principal, case, found, view, forced=request.force, reason=request.reason)
            if found.decision.allowed or request.force:
                moved = _move(session, principal, case, view, request, forced=not found.decision.allowed)
        fault_point("promote.before-commit")
    fault_point("promote.after-commit")
    if moved is None and view.allowed is False:
        raise _refused(view)
    return PromotionView(_with_jobs(ctx, principal, view, found, started=moved is None), moved)


def _move(
    session: Session, principal: Principal, case: Case, view: GateView, request: PromoteRequest, *, forced: bool
) -> TagView:
    generation = request.expect_generation
    if generation is None:
        generation = case.row.generation if case.row is not None else 0
    row = tags.set_in_transaction(
        session,
        principal,
        case.repo,
        case.tag,
        case.version,
        expect=Expectation(generation=generation) if generation else Expectation(absent=True),
        reason=request.reason or view.reason,
        warrant=Warrant(int(view.decision or 0), tuple(view.reports), forced=forced),
    )
    return views.tag(case.repo, row, case.version)


def _view(case: Case, found: Judged) -> GateView:
    return GateView(
        namespace=case.repo.namespace,
        name=case.repo.name,
        tag=case.tag,
        version=case.version.digest,
        number=case.version.number,
        base=case.base.digest,
        holder=case.holder.digest if case.holder else None,
        holder_number=case.holder.number if case.holder else None,
        policy=case.policy_digest,
        policy_name=case.policy.name,
        policy_pattern=case.pattern,
        allowed=found.decision.allowed,
        reason=found.decision.reason,
        checks=[CheckView(c.rule, c.state, c.message, c.evidence) for c in found.decision.checks],
        reports=list(found.reports),
    )


def _record(
    session: Session,
    principal: Principal,
    case: Case,
    found: Judged,
    view: GateView,
    *,
    forced: bool = False,
    reason: str = "",
) -> GateView:
    """The view with the id of its row. The same question with the same answer is one row."""
    forced = forced and not found.decision.allowed
    row = DecisionRow(
        version_id=case.version.id,
        tag=case.tag,
        base_digest=case.base.digest,
        holder_version_id=case.holder.id if case.holder else None,
        policy_digest=case.policy_digest,
        report_id=found.own.id if found.own else None,
        sets=json.dumps(case.sets.digests()),
        allowed=found.decision.allowed is True,
        forced=forced,
        reason=reason if forced else found.decision.reason,
        body=msgspec.json.encode(view).decode(),
        author=principal.name,
        created_at=now(),
    )
    last = gate_store.newest_decision(session, row.version_id, row.tag)
    if last is None or forced or _inputs(last) != _inputs(row):
        session.add(row)
        session.flush()
        audit.record(
            session,
            "gate-decided",
            principal=principal,
            namespace=case.repo.namespace,
            subject=f"{case.repo.namespace}/{case.repo.name}:v{case.version.number}",
            tag=case.tag,
            allowed=row.allowed,
            forced=forced,
            reason=row.reason,
            policy=case.policy_digest,
            reports=list(found.reports),
            decision=str(row.id),
        )
        last = row
    return msgspec.structs.replace(view, decision=str(last.id))


def _inputs(row: DecisionRow) -> tuple[object, ...]:
    return (
        row.base_digest, row.holder_version_id, row.policy_digest, row.report_id, row.sets, row.allowed, row.forced,
        row.reason,
    )  # fmt: skip


def _with_jobs(ctx: Context, principal: Principal, view: GateView, found: Judged, *, started: bool) -> GateView:
    if view.allowed is not None or not started:
        return view
    ids = [wanted.job_id for wanted in found.missing]
    validations.again(ctx, ids)
    return msgspec.structs.replace(view, jobs=[jobs.show(ctx, principal, job_id) for job_id in ids])


def _refused(view: GateView) -> RegistryError:
    failed = [check for check in view.checks if check.state == "failed"]
    return RegistryError(
        "gate-refused",
        f"{view.namespace}/{view.name}:v{view.number} may not become {view.tag}: {view.reason}",
        findings=[Finding(check.rule, "error", check.message) for check in failed],
    )
