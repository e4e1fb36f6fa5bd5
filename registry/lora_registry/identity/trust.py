"""Trust rules for administrators: add, list, remove."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec
from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.roles import check_pattern
from lora_contract.wire.identity import TrustList, TrustRequest, TrustView
from lora_registry.auth.caller import Caller
from lora_registry.auth.trusted import rule_of, rules_in_force
from lora_registry.db.dialect import database_now
from lora_registry.db.tables import TrustRuleRow
from lora_registry.events import audit
from lora_registry.identity import issuers, store
from lora_registry.oidc import rules
from lora_registry.oidc.rules import KINDS
from lora_registry.runtime.clock import iso
from lora_registry.settings import ServiceSettings

_NAME: Final = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*\Z")


def add(caller: Caller, request: TrustRequest) -> TrustView:
    """Add a rule. The caller must be an administrator of all namespaces: a rule decides who the service believes.

    Raises `usage` for a rule that names no immutable id, `exists`.
    """
    caller.require_root()
    issuer, audience = _checked(request, caller.ctx.settings)
    claims = json.dumps(request.claims, sort_keys=True)
    with caller.ctx.db.write() as session:
        issuers.keep(session, caller.principal, issuer, request.keys)
        for known in rules_in_force(session):
            if known.name == request.name:
                raise RegistryError("exists", f"A trust rule named {request.name!r} already exists.")
            if (known.issuer, known.audience, known.claims) == (issuer, audience, claims):
                raise RegistryError(
                    "exists",
                    f"The rule {known.name!r} compares the same claims.",
                    hint=f"Remove it first with `lora-registry trust remove {known.name}`.",
                )
        row = TrustRuleRow(
            name=request.name,
            kind=request.kind,
            issuer=issuer,
            audience=audience,
            claims=claims,
            grants=msgspec.json.encode(sorted(request.grants)).decode(),
            seconds=request.seconds or KINDS[request.kind].seconds,
            pull_requests=request.pull_requests,
            note=request.note,
            created_by=caller.principal.name,
            created_at=database_now(session),
        )
        session.add(row)
        session.flush()
        _record(session, "trust-added", caller, row)
        return _view(row)


def list_all(caller: Caller) -> TrustList:
    """List the rules in force, by name."""
    caller.require_root()
    with caller.ctx.db.read() as session:
        return TrustList(items=[_view(row) for row in rules_in_force(session)])


def remove(caller: Caller, name: str) -> None:
    """Remove a rule, and end the tokens that it gave grants. Raises `not-found`."""
    caller.require_root()
    with caller.ctx.db.write() as session:
        row = store.live_rule(session, name)
        if row is None:
            raise RegistryError(
                "not-found",
                f"There is no trust rule {name[:100]!r}.",
                hint="List them with `lora-registry trust list`.",
            )
        row.removed_at = database_now(session)
        session.add(row)
        store.end_tokens(session, row.id, at=row.removed_at)
        _record(session, "trust-removed", caller, row)


def _checked(request: TrustRequest, settings: ServiceSettings) -> tuple[str, str]:
    """Return issuer and audience of a sound request."""
    kind = KINDS[request.kind]
    issuer, audience = request.issuer or kind.issuer, request.audience or settings.oidc_audience
    if request.kind == "person":
        issuer = request.issuer or settings.login_issuer
        audience = request.audience or settings.login_client_id or ""
    if not issuer or not audience:
        raise RegistryError(
            "usage",
            f"A {request.kind} rule needs {'an issuer' if not issuer else 'an audience'}.",
            hint="For people, set LORA_REG_LOGIN_ISSUER and LORA_REG_LOGIN_CLIENT_ID."
            if request.kind == "person"
            else "Name the `iss` of the tokens with --issuer.",
        )
    own = next((name for name, each in KINDS.items() if each.issuer == issuer.rstrip("/")), None)
    if request.kind == "other" and own is not None:
        raise RegistryError(
            "usage",
            f"{issuer} is the issuer of {own}; a rule of the kind other would not compare the ids that count there.",
            hint=f"Make it a {own} rule.",
        )
    if not _NAME.match(request.name):
        raise RegistryError(
            "usage",
            f"{request.name!r} is not a name for a rule; expected lower-case letters and digits, joined by '.', '_' or "
            "'-'.",
        )
    issuers.check(issuer, request.keys)
    for grant in request.grants:
        check_pattern(grant.pattern)
    if len({grant.pattern for grant in request.grants}) < len(request.grants):
        raise RegistryError("usage", "Two grants have the same pattern; give each pattern one role.")
    if (problem := rules.problem_of(request.kind, request.claims)) is not None:
        raise RegistryError("usage", problem, hint="docs/identity.md has a recipe for each issuer.")
    return issuer, audience


def _view(row: TrustRuleRow) -> TrustView:
    return TrustView(
        name=row.name,
        kind=row.kind,  # type: ignore[arg-type]
        issuer=row.issuer,
        audience=row.audience,
        claims=json.loads(row.claims),
        grants=list(rule_of(row).grants),
        seconds=row.seconds,
        pull_requests=row.pull_requests,
        note=row.note,
        created_by=row.created_by,
        created_at=iso(row.created_at),
    )


def _record(session: Session, kind: str, caller: Caller, row: TrustRuleRow) -> None:
    """Record one event for each grant, as for tokens."""
    facts: dict[str, Any] = {"issuer": row.issuer, "audience": row.audience, "claims": json.loads(row.claims)}
    for grant in rule_of(row).grants:
        audit.record(
            session,
            kind,
            principal=caller.principal,
            namespace=grant.pattern,
            subject=row.name,
            grant=str(grant),
            **facts,
        )
