"""Merges: merge adapters into their base."""

from __future__ import annotations

from typing import Final

from sqlmodel import Session

from lora_contract.devices import RecipeDevice
from lora_contract.errors import RegistryError
from lora_contract.recipe import MergeRecipe
from lora_contract.wire.jobs import JobView
from lora_contract.wire.operations import MergeRequest
from lora_registry.auth.caller import Caller
from lora_registry.bases import weights
from lora_registry.derivations import devices, inputs
from lora_registry.derivations import recipe_job as derive
from lora_registry.repositories import resolve

MERGE_VERSION: Final = 1


def submit(caller: Caller, request: MergeRequest) -> JobView:
    """Start a merge, or find its job: see `derive.submit`. All adapters must pin their target base."""
    if request.seed and request.rounding == "nearest":
        # An ignored seed would give two jobs with the same result.
        raise RegistryError("invalid-request", "Rounding to nearest accepts no seed; request stochastic rounding.")

    def resolve_recipe(session: Session, target: str) -> derive.ResolvedRecipe:
        found = inputs.adapters(session, caller.principal, request.adapters)
        if request.base is not None:
            _, chosen = resolve.by_text(session, caller.principal, request.base)
            if chosen.digest != found.base.digest:
                raise RegistryError(
                    "conflict", f"{request.base} is not the base version that {request.adapters[0].adapter} pins."
                )
        weights.require(
            session,
            caller.ctx.settings,
            found.base,
            hint="Add the base with its weights, or use `lora-reg merge --local --base-dir`.",
        )

        def on(device: RecipeDevice) -> MergeRecipe:
            return MergeRecipe(
                operation_version=MERGE_VERSION,
                base=found.base.digest,
                inputs=found.inputs,
                target=target,
                dtype=request.dtype,
                allow_loss=request.allow_loss,
                onto=request.onto,
                rounding=request.rounding,
                seed=request.seed,
                device=device,
            )

        # Reading and writing files takes longer than the sums of a plain merge.
        suited = "nf4" in (request.onto, request.dtype) and request.rounding == "nearest"
        recipe = devices.choose(caller.ctx.jobs, session, request.device, on, base=found.base, suited=suited)
        return derive.ResolvedRecipe(recipe, found.base.id, found.ids, found.title, found.mentions)

    return derive.submit(caller, request, "model", resolve_recipe)
