"""Change the grants of a token that exists: nobody gives, or takes, more than the caller administers."""

from __future__ import annotations

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.roles import Grant, Role, check_pattern
from lora_contract.wire.access import GrantsRequest, TokenView
from lora_registry.access import store, tokens
from lora_registry.auth.principals import Principal
from lora_registry.events import audit


def change(session: Session, principal: Principal, name: str, request: GrantsRequest) -> TokenView:
    """Add, remove or replace grants; one event for each that changes. Grants in namespaces of others stay.

    Raises `not-found`, `forbidden`, `conflict` (a revoked token, one that was issued, no grant left), `usage`.
    """
    row, own = tokens.administered(session, principal, name)
    if row.revoked_at is not None:
        raise RegistryError("conflict", f"The token {name!r} was revoked.", hint="Create one with another name.")
    if store.is_issued(session, row.id):
        raise RegistryError(
            "conflict",
            f"The token {name!r} was issued for an identity token; it has the grants of trust rules.",
            hint="Change the rules: `lora-registry trust list` shows them.",
        )
    before = {grant.pattern: grant.role for grant in store.grants(session, [row.id])[row.id]}
    after = _changed(principal, name, before, {grant.pattern for grant in own}, request)
    if not after:
        raise RegistryError("conflict", "The token would have no grant left.", hint="Revoke it instead.")
    if len(after) > tokens.MAX_GRANTS:
        raise RegistryError("usage", f"A token must have 1 to {tokens.MAX_GRANTS} grants, not {len(after)}.")
    patterns = sorted(pattern for pattern in {*before, *after} if before.get(pattern) != after.get(pattern))
    store.set_grants(session, row.id, {pattern: after.get(pattern) for pattern in patterns})
    for pattern in patterns:
        audit.record(
            session,
            "grants-changed",
            principal=principal,
            namespace=pattern,
            subject=row.name,
            before=before.get(pattern),
            after=after.get(pattern),
        )
    return tokens.view(principal, row, [Grant(pattern, role) for pattern, role in sorted(after.items())])


def _changed(
    principal: Principal, name: str, before: dict[str, Role], own: set[str], request: GrantsRequest
) -> dict[str, Role]:
    """own: the patterns that the caller administers."""
    after = dict(before)
    given, removed = [*request.add, *(request.replace or ())], [pattern.lower() for pattern in request.remove]
    if request.replace is not None:
        if request.add or request.remove:
            raise RegistryError("usage", "Replace all grants, or add and remove some; not both.")
        after = {pattern: role for pattern, role in before.items() if pattern not in own}
    if len({*(grant.pattern for grant in given), *removed}) < len(given) + len(removed):
        raise RegistryError("usage", "A pattern is named twice; name each once.")
    for pattern in removed:
        if pattern not in own:
            raise RegistryError(
                "not-found",
                f"The token {name!r} has no grant for {pattern[:100]!r} that you administer.",
                hint="List the tokens with `token list`.",
            )
        del after[pattern]
    for grant in given:
        check_pattern(grant.pattern)
        if not principal.may("admin", grant.pattern):
            raise RegistryError("forbidden", f"To grant {grant} requires the role admin in {grant.pattern!r}.")
        after[grant.pattern] = grant.role
    return after
