"""Namespaces and tokens for callers of the API: permissions and transactions around `namespaces` and `tokens`."""

from __future__ import annotations

from lora_contract import reference
from lora_contract.roles import Visibility
from lora_contract.wire.access import GrantsRequest, NamespaceList, NamespaceView, QuotaRequest, TokenList, TokenView
from lora_registry.access import grants, namespaces, tokens
from lora_registry.auth.caller import Caller


def list_namespaces(caller: Caller, *, cursor: str | None, limit: int) -> NamespaceList:
    with caller.ctx.db.read() as session:
        return namespaces.list_all(session, caller.ctx.jobs.rows, caller.principal, cursor=cursor, limit=limit)


def show_namespace(caller: Caller, name: str) -> NamespaceView:
    with caller.ctx.db.read() as session:
        return namespaces.show(session, caller.ctx.jobs.rows, caller.principal, name)


def set_visibility(caller: Caller, name: str, visibility: Visibility) -> NamespaceView:
    name = reference.check_namespace(name)
    caller.require("admin", name)
    with caller.ctx.db.write() as session:
        return namespaces.set_visibility(session, caller.ctx.jobs.rows, caller.principal, name, visibility)


def set_quota(caller: Caller, name: str, request: QuotaRequest) -> NamespaceView:
    """Set a quota. Only an administrator of all namespaces may: others could raise their own."""
    caller.require_root()
    name = reference.check_namespace(name)
    with caller.ctx.db.write() as session:
        return namespaces.set_quota(session, caller.ctx.jobs.rows, caller.principal, name, request)


def list_tokens(caller: Caller, *, cursor: str | None, limit: int) -> TokenList:
    caller.require_signed_in()
    with caller.ctx.db.read() as session:
        return tokens.list_all(session, caller.principal, cursor=cursor, limit=limit)


def change_grants(caller: Caller, name: str, request: GrantsRequest) -> TokenView:
    caller.require_signed_in()
    with caller.ctx.db.write() as session:
        return grants.change(session, caller.principal, name, request)


def revoke_token(caller: Caller, name: str) -> None:
    with caller.ctx.db.write() as session:
        tokens.revoke(session, caller.principal, name)
