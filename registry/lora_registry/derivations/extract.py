"""Extractions: turn the difference between a fine-tune and its base into an adapter of that base."""

from __future__ import annotations

from typing import Final

from sqlmodel import Session

from lora_contract.devices import RecipeDevice
from lora_contract.errors import RegistryError
from lora_contract.recipe import ExtractRecipe
from lora_contract.wire.jobs import JobView
from lora_contract.wire.operations import ExtractRequest
from lora_registry.auth.caller import Caller
from lora_registry.bases import weights
from lora_registry.derivations import devices
from lora_registry.derivations import recipe_job as derive
from lora_registry.repositories import resolve

EXTRACT_VERSION: Final = 1
ADD_WEIGHTS: Final = "Add it with its weights, or use `lora-reg extract --local` on folders."


def submit(caller: Caller, request: ExtractRequest) -> JobView:
    """Start an extraction, or find its job: see `derive.submit`."""
    if (request.rank is None) == (request.keep_energy is None):
        raise RegistryError("invalid-request", "An extraction needs either a rank or a share of the energy to keep.")
    if request.max_rank is not None and request.keep_energy is None:
        raise RegistryError("invalid-request", "A maximum rank requires a share of the energy to keep.")

    def resolve_recipe(session: Session, target: str) -> derive.ResolvedRecipe:
        tuned_repo, tuned = resolve.by_text(session, caller.principal, request.tuned)
        base_repo, base = resolve.by_text(session, caller.principal, request.base)
        if tuned_repo.kind not in ("model", "base"):
            raise RegistryError(
                "conflict", f"{request.tuned} is of kind {tuned_repo.kind}; expected a full checkpoint."
            )
        if base_repo.kind != "base":
            raise RegistryError("conflict", f"{request.base} is of kind {base_repo.kind}; expected a base.")
        for checkpoint in (tuned, base):
            weights.require(session, caller.ctx.settings, checkpoint, hint=ADD_WEIGHTS)

        def on(device: RecipeDevice) -> ExtractRecipe:
            return ExtractRecipe(
                operation_version=EXTRACT_VERSION,
                base=base.digest,
                target=target,
                tuned=tuned.digest,
                base_name=f"{base_repo.label}",
                rank=request.rank,
                keep_energy=request.keep_energy,
                max_rank=request.max_rank,
                targets=tuple(request.targets) if isinstance(request.targets, list) else request.targets,
                save_changed=request.save_changed,
                seed=request.seed,
                dtype=request.dtype,
                device=device,
            )

        recipe = devices.choose(caller.ctx.jobs, session, request.device, on, base=base, suited=True)
        mentions = ((tuned.id, request.tuned), (base.id, request.base))
        return derive.ResolvedRecipe(recipe, base.id, (tuned.id,), f"{request.tuned} - {request.base}", mentions)

    return derive.submit(caller, request, "adapter", resolve_recipe)
