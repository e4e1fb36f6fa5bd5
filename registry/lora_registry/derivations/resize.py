"""Resizes and conversions: change the rank or type of an adapter."""

from __future__ import annotations

from typing import Final

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.recipe import ConvertRecipe, ResizeRecipe
from lora_contract.wire.jobs import JobView
from lora_contract.wire.operations import ConvertRequest, ResizeRequest, WeightedAdapter
from lora_registry.auth.caller import Caller
from lora_registry.derivations import inputs
from lora_registry.derivations import recipe_job as derive

RESIZE_VERSION: Final = 1
CONVERT_VERSION: Final = 1


def submit(caller: Caller, request: ResizeRequest) -> JobView:
    """Start a resize, or find its job: see `derive.submit`."""
    if (request.rank is None) == (request.keep_energy is None):
        raise RegistryError("invalid-request", "A resize needs either a rank or a share of the energy to keep.")

    def resolve_recipe(session: Session, target: str) -> derive.ResolvedRecipe:
        found = inputs.adapters(session, caller.principal, [WeightedAdapter(adapter=request.adapter)])
        recipe = ResizeRecipe(
            operation_version=RESIZE_VERSION,
            base=found.base.digest,
            target=target,
            adapter=found.inputs[0].digest,
            rank=request.rank,
            keep_energy=request.keep_energy,
            dtype=request.dtype,
        )
        return derive.ResolvedRecipe(recipe, found.base.id, found.ids, found.title, found.mentions)

    return derive.submit(caller, request, "adapter", resolve_recipe)


def submit_conversion(caller: Caller, request: ConvertRequest) -> JobView:
    """Start a conversion to plain LoRA, or find its job: see `derive.submit`."""

    def resolve_recipe(session: Session, target: str) -> derive.ResolvedRecipe:
        found = inputs.adapters(session, caller.principal, [WeightedAdapter(adapter=request.adapter)])
        recipe = ConvertRecipe(
            operation_version=CONVERT_VERSION,
            base=found.base.digest,
            target=target,
            adapter=found.inputs[0].digest,
            uniform_rank=request.uniform_rank,
            dtype=request.dtype,
        )
        return derive.ResolvedRecipe(recipe, found.base.id, found.ids, found.title, found.mentions)

    return derive.submit(caller, request, "adapter", resolve_recipe)
