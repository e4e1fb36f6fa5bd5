"""Gate and promote: evaluate, store the decision, and move the tag in the same transaction."""

from __future__ import annotations

import json

import msgspec
from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.findings import Finding
from lora_contract.wire.gates import CheckView, GateRequest, GateView, PromoteRequest, PromotionView
from lora_contract.wire.tags import TagView
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.db.tables import DecisionRow
from lora_registry.events import audit
from lora_registry.gates import intact, store, validations
from lora_registry.gates.evaluation import (
    GateInputs,
    GateOutcome,
    GateQuestion,
    evaluate,
    require_measurable,
    resolve_inputs,
)
from lora_registry.jobs import service as jobs
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.clock import now
from lora_registry.runtime.faults import fault_point
from lora_registry.tags import moves, views
from lora_registry.tags.moves import GateDecision, Precondition


def gate(caller: Caller, path: RepositoryPath, request: GateRequest) -> GateView:
    """Decide, or start the missing validations. Stores the decision, unless its policy was only tested.

    Raises what `resolve_inputs` raises, and `unsupported` if the base's weights are not stored.
    """
    caller.require("writer", path.namespace)
    with caller.ctx.db.write() as session:
        question = GateQuestion(request.version, request.tag, request.data, request.document)
        inputs = resolve_inputs(session, caller.principal, path, question, lock=True)
        outcome = evaluate(session, inputs, caller.principal.name)
        view = _view(inputs, outcome)
        if outcome.decision.allowed is None and request.start:
            require_measurable(session, caller.ctx.settings, outcome.missing)
            validations.start(caller, session, inputs.repo, outcome.missing, inputs.sets)
        elif outcome.decision.allowed is not None and request.document is None:
            decision = _record(session, caller.principal, inputs, outcome)
            view = msgspec.structs.replace(view, decision=str(decision))
    return _with_jobs(caller, view, outcome, started=request.start)


def promote(caller: Caller, path: RepositoryPath, request: PromoteRequest) -> PromotionView:
    """Gate, and move the tag in the same transaction. Missing validations are started instead of a move.

    Raises `gate-refused` with the failed checks, `corrupt` if stored bytes differ from what was evaluated, `tag-moved`,
    and `forbidden` if `force` is not from an administrator.
    """
    caller.require("admin" if request.force else "writer", path.namespace)
    if request.force and not request.reason.strip():
        raise RegistryError("invalid-request", "A forced promotion needs a reason, which is logged with it.")
    moved: TagView | None = None
    question = GateQuestion(request.version, request.tag, request.data)
    with caller.ctx.db.read() as session:
        before = resolve_inputs(session, caller.principal, path, question)
    # Outside the transaction, which must not hold the repository's lock for that long.
    intact.check(caller.ctx, before)
    with caller.ctx.db.write() as session:
        inputs = resolve_inputs(session, caller.principal, path, question, lock=True)
        outcome = evaluate(session, inputs, caller.principal.name)
        view = _view(inputs, outcome)
        if outcome.decision.allowed is None and not request.force:
            require_measurable(session, caller.ctx.settings, outcome.missing)
            validations.start(caller, session, inputs.repo, outcome.missing, inputs.sets)
        else:
            decision = _record(session, caller.principal, inputs, outcome, forced=request.force, reason=request.reason)
            view = msgspec.structs.replace(view, decision=str(decision))
            if outcome.decision.allowed or request.force:
                gate_decision = GateDecision(decision, outcome.reports, forced=not outcome.decision.allowed)
                reason = request.reason or outcome.stored.reason
                moved = _move(session, caller.principal, inputs, request, gate_decision, reason=reason)
        fault_point("promote.before-commit")
    fault_point("promote.after-commit")
    if moved is None and view.allowed is False:
        raise _refused(view)
    return PromotionView(_with_jobs(caller, view, outcome, started=moved is None), moved)


def _move(
    session: Session,
    principal: Principal,
    inputs: GateInputs,
    request: PromoteRequest,
    decision: GateDecision,
    *,
    reason: str,
) -> TagView:
    generation = request.expect_generation
    if generation is None:
        generation = inputs.row.generation if inputs.row is not None else 0
    row = moves.set_tag(
        session,
        principal,
        inputs.repo,
        inputs.tag,
        inputs.version,
        expect=Precondition(generation=generation) if generation else Precondition(absent=True),
        reason=reason,
        decision=decision,
    )
    return views.tag(inputs.repo, row, inputs.version)


def _view(inputs: GateInputs, outcome: GateOutcome, *, stored: bool = False) -> GateView:
    """stored: in the words that are stored."""
    decision = outcome.stored if stored else outcome.decision
    return GateView(
        namespace=inputs.repo.namespace,
        name=inputs.repo.shown,
        tag=inputs.tag,
        version=inputs.version.digest,
        number=inputs.version.number,
        base=inputs.base.digest,
        holder=inputs.target.digest if inputs.target else None,
        holder_number=inputs.target.number if inputs.target else None,
        policy=inputs.policy_digest,
        policy_name=inputs.policy.name,
        policy_pattern=inputs.pattern,
        allowed=decision.allowed,
        reason=decision.reason,
        checks=[CheckView(c.rule, c.state, c.message, c.evidence) for c in decision.checks],
        reports=list(outcome.reports),
    )


def _record(
    session: Session,
    principal: Principal,
    inputs: GateInputs,
    outcome: GateOutcome,
    *,
    forced: bool = False,
    reason: str = "",
) -> int:
    """Store the decision, unless it equals the newest one. Return its id."""
    forced = forced and not outcome.decision.allowed
    row = DecisionRow(
        version_id=inputs.version.id,
        tag=inputs.tag,
        base_digest=inputs.base.digest,
        holder_version_id=inputs.target.id if inputs.target else None,
        policy_digest=inputs.policy_digest,
        report_id=outcome.own.id if outcome.own else None,
        sets=json.dumps(inputs.sets.digests()),
        allowed=outcome.decision.allowed is True,
        forced=forced,
        reason=reason if forced else outcome.stored.reason,
        body=msgspec.json.encode(_view(inputs, outcome, stored=True)).decode(),
        author=principal.name,
        created_at=now(),
    )
    last = store.newest_decision(session, row.version_id, row.tag)
    if last is None or forced or _compared_fields(last) != _compared_fields(row):
        session.add(row)
        session.flush()
        audit.record(
            session,
            "gate-decided",
            principal=principal,
            namespace=inputs.repo.namespace,
            subject=f"{inputs.repo.label}:v{inputs.version.number}",
            tag=inputs.tag,
            allowed=row.allowed,
            forced=forced,
            reason=row.reason,
            policy=inputs.policy_digest,
            reports=list(outcome.reports),
            decision=str(row.id),
        )
        last = row
    return last.id


def _compared_fields(row: DecisionRow) -> tuple[object, ...]:
    return (
        row.base_digest, row.holder_version_id, row.policy_digest, row.report_id, row.sets, row.allowed, row.forced,
        row.reason,
    )  # fmt: skip


def _with_jobs(caller: Caller, view: GateView, outcome: GateOutcome, *, started: bool) -> GateView:
    if view.allowed is not None or not started:
        return view
    ids = [required.job_id for required in outcome.missing]
    validations.retry(caller.ctx, ids)
    return msgspec.structs.replace(view, jobs=[jobs.show(caller, job_id) for job_id in ids])


def _refused(view: GateView) -> RegistryError:
    failed = [check for check in view.checks if check.state == "failed"]
    return RegistryError(
        "gate-refused",
        f"{view.namespace}/{view.name}:v{view.number} may not become {view.tag}: {view.reason}",
        findings=[Finding(check.rule, "error", check.message) for check in failed],
    )
