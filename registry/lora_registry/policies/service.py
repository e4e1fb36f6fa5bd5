"""Stored policies: a document per pattern of tags. Each change adds a numbered row; nothing is overwritten."""

from __future__ import annotations

import json
from typing import Any

from lora_contract.errors import RegistryError
from lora_contract.policy import Policy, parse_pattern, parse_policy
from lora_contract.wire.gates import PolicyList, PolicyRequest, PolicyView
from lora_registry.auth.caller import Caller
from lora_registry.db.tables import PolicyRow
from lora_registry.events import audit
from lora_registry.policies import store
from lora_registry.policies.datasets import evaluation_sets
from lora_registry.runtime.clock import iso, now

ALL_NAMESPACES = "*"


def put(caller: Caller, request: PolicyRequest) -> PolicyView:
    """Set a pattern's policy, or remove it if the request has no document. The evaluation sets must exist.

    The same document again is a no-op. Raises `invalid-request`, `not-found`, `forbidden`: only an administrator of all
    namespaces may set a pattern that spans several.
    """
    namespace = parse_pattern(request.pattern)[0]
    scope = ALL_NAMESPACES if "*" in namespace else namespace
    caller.require("admin", scope)
    policy = None if request.document is None else read(request.document)
    with caller.ctx.db.write() as session:
        store.lock_policies(session, exclusive=True)
        if policy is not None:
            evaluation_sets(session, caller.principal, policy)
        digest = None if policy is None else str(policy.digest)
        before = next(iter(store.policy_history(session, request.pattern)), None)
        if (before is None and digest is None) or (before is not None and before.digest == digest):
            row = before
        else:
            row = PolicyRow(
                namespace=scope,
                pattern=request.pattern,
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
                subject=request.pattern,
                number=row.number,
                policy=digest,
            )
    if row is None:
        return PolicyView(request.pattern, 0, None, None, "", "")
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
    """List the policies in force, by pattern; with a pattern, its whole history, newest first."""
    with caller.ctx.db.read() as session:
        if pattern is not None:
            namespace = parse_pattern(pattern)[0]
            if "*" not in namespace:
                caller.require("reader", namespace)
            return PolicyList([_view(row) for row in store.policy_history(session, pattern)])
        visible = caller.principal.visible()
        rows = store.current_policies(session, None if visible is None else [visible, ALL_NAMESPACES])
        return PolicyList([_view(row) for row in rows if row.body is not None])


def _view(row: PolicyRow) -> PolicyView:
    return PolicyView(
        pattern=row.pattern,
        number=row.number,
        digest=row.digest,
        document=None if row.body is None else json.loads(row.body),
        author=row.author,
        created_at=iso(row.created_at),
    )
