"""Resizes of bases: a base with another number of tokens, for adapters that were trained on one."""

from __future__ import annotations

from typing import Final

from sqlmodel import Session

from lora_contract.base import parse_fingerprint
from lora_contract.errors import RegistryError
from lora_contract.recipe import ResizeBaseRecipe
from lora_contract.vocabulary import check_rows, check_size, vocabulary_tensors
from lora_contract.wire.jobs import JobView
from lora_contract.wire.operations import ResizeBaseRequest
from lora_registry.auth.caller import Caller
from lora_registry.bases import store as base_store
from lora_registry.bases import weights
from lora_registry.derivations import recipe_job as derive
from lora_registry.repositories import resolve

RESIZE_BASE_VERSION: Final = 1
_LOCAL: Final = "Use `lora-reg base resize --local DIR`, and add the result with `lora-reg base add`."


def submit(caller: Caller, request: ResizeBaseRequest) -> JobView:
    """Start a resize of a base, or find its job: see `derive.submit`. Also raises what `check_rows` raises."""
    check_size(request.rows)

    def resolve_recipe(session: Session, target: str) -> derive.ResolvedRecipe:
        repo, version = resolve.by_text(session, caller.principal, request.base)
        row = base_store.fingerprint(session, version.id)
        if repo.kind != "base" or row is None:
            raise RegistryError("conflict", f"{request.base} is of kind {repo.kind}; expected a base.")
        weights.require(session, caller.ctx.settings, version, hint=f"Add it with its weights. {_LOCAL}")
        fingerprint = parse_fingerprint(row.body)
        before = vocabulary_tensors(fingerprint)[0].shape[0]
        if request.vocab == before:
            raise RegistryError("invalid-request", f"{request.base} already has {before} tokens.")
        if request.rows and request.vocab < before:
            raise RegistryError("invalid-request", f"{request.base} has {before} tokens: {request.vocab} need no rows.")
        rows = check_rows(tuple(request.rows), fingerprint, request.vocab)
        recipe = ResizeBaseRecipe(
            operation_version=RESIZE_BASE_VERSION,
            base=version.digest,
            target=target,
            vocab=request.vocab,
            rows=tuple(rows[name] for name in sorted(rows)),
        )
        return derive.ResolvedRecipe(recipe, version.id, (), request.base, ((version.id, request.base),))

    return derive.submit(caller, request, "base", resolve_recipe)
