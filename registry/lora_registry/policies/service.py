"""Stored policies: a document per pattern of tags. Each change adds a numbered row; nothing is overwritten."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any, Final

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.glob import matches
from lora_contract.policy import Policy, canonical_pattern, parse_pattern, parse_policy
from lora_contract.roles import ALL
from lora_contract.wire.gates import PolicyList, PolicyRequest, PolicyView
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.auth.reading import absent, may_read, open_namespaces
from lora_registry.db.tables import PolicyRow
from lora_registry.events import audit
from lora_registry.policies import store
from lora_registry.policies.datasets import evaluation_sets, hidden_sets
from lora_registry.runtime.clock import iso, now

HIDDEN: Final = "(hidden)"


def put(caller: Caller, request: PolicyRequest) -> PolicyView:
    """Set a pattern's policy, or remove it if the request has no document. The evaluation sets must exist.

    The same document again is a no-op. Raises `invalid-request`, `not-found`, `forbidden`: the caller must be a
    maintainer of every namespace that the pattern spans.
    """
    pattern = canonical_pattern(request.pattern)
    namespace = parse_pattern(pattern)[0]
    scope = ALL if ALL in namespace else namespace
    caller.require("maintainer", namespace)
    policy = None if request.document is None else read(request.document)
    with caller.ctx.db.write() as session:
        store.lock_policies(session, exclusive=True)
        if policy is not None:
            evaluation_sets(session, caller.principal, policy)
        digest = None if policy is None else str(policy.digest)
        before = next(iter(store.policy_history(session, pattern)), None)
        if (before is None and digest is None) or (before is not None and before.digest == digest):
            row = before
        else:
            row = PolicyRow(
                namespace=scope,
                pattern=pattern,
                number=(before.number if before else 0) + 1,
                digest=digest,
                body=None if policy is None else policy.to_bytes(),
                author=caller.principal.name,
                created_at=now(),
            )
            session.add(row)
            audit.record(
                session,
                "policy-set" if policy is not None else "policy-lifted",
                principal=caller.principal,
                namespace=scope,
                subject=pattern,
                number=row.number,
                policy=digest,
            )
    if row is None:
        return PolicyView(pattern, 0, None, None, "", "")
    return _view(row)


def read(document: Any) -> Policy:
    """Parse a policy that a gate of this registry can apply. Raises RegistryError `invalid-request`."""
    policy = parse_policy(document)
    if policy.behaviour.tasks:
        raise RegistryError(
            "invalid-request",
            "The policy requires behaviour.tasks, which no report of a registry has: tasks of lm-evaluation-harness "
            "contain Python code, which jobs of a registry do not run.",
            hint="Evaluate it where the tasks are: `lora-reg validate --local --tasks DIR --policy FILE`.",
        )
    return policy


def list_all(caller: Caller, *, pattern: str | None) -> PolicyList:
    """List the policies in force that govern a namespace which the caller may read, by pattern; with a pattern, its
    whole history, newest first. Evaluation sets that the caller may not read are not named."""
    with caller.ctx.db.read() as session:
        if pattern is not None:
            pattern = canonical_pattern(pattern)
            namespace = parse_pattern(pattern)[0]
            if ALL not in namespace and not may_read(session, caller.principal, namespace):
                raise absent(caller.principal, f"There is no namespace {namespace!r} that you may read.")
            rows = store.policy_history(session, pattern)
        else:
            rows = store.current_policies(session, caller.principal.visible())
            rows = [row for row in rows if row.body is not None]
        rows = _governing(session, caller.principal, rows)
        policies = [parse_policy(json.loads(row.body)) for row in rows if row.body is not None]
        hidden = hidden_sets(session, caller.principal, policies)
        return PolicyList([_view(row, hidden) for row in rows])


def _governing(session: Session, principal: Principal, rows: list[PolicyRow]) -> list[PolicyRow]:
    """Return the policies that can govern a namespace which the caller may read."""
    scope = principal.visible()
    if scope.is_all or all(row.namespace != ALL for row in rows):
        return rows
    names = [*scope.patterns, *open_namespaces(session, principal)]

    def governs(row: PolicyRow) -> bool:
        namespace = parse_pattern(row.pattern)[0]
        return any(matches(namespace, name) or matches(name, namespace) for name in names)

    return [row for row in rows if row.namespace != ALL or governs(row)]


def _view(row: PolicyRow, hidden: Set[str] = frozenset()) -> PolicyView:
    """hidden: references that are not shown."""
    document = None if row.body is None else json.loads(row.body)
    if document is not None and hidden:
        for part in ("quality", "forgetting", "behaviour"):
            document[part]["sets"] = [HIDDEN if text in hidden else text for text in document[part]["sets"]]
        highest = document["quality"]["highest"]
        document["quality"]["highest"] = {text: value for text, value in highest.items() if text not in hidden}
    return PolicyView(
        pattern=row.pattern,
        number=row.number,
        digest=row.digest,
        document=document,
        author=row.author,
        created_at=iso(row.created_at),
    )
