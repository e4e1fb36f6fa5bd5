"""Compositions: adapters of one base into one adapter."""

from __future__ import annotations

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.methods import check_parameters, find_method
from lora_contract.recipe import ComposeRecipe
from lora_contract.wire.jobs import JobView
from lora_contract.wire.operations import ComposeRequest
from lora_registry.auth.caller import Caller
from lora_registry.derivations import inputs
from lora_registry.derivations import recipe_job as derive


def submit(caller: Caller, request: ComposeRequest) -> JobView:
    """Start a composition, or find its job: see `derive.submit`. Raises as `check_parameters` does, too."""
    method = find_method(request.method)
    parameters = check_parameters(request.method, request.parameters)
    if request.seed and not method.seeded:
        # It would make two jobs of one result.
        raise RegistryError("invalid-request", f"The method {method.name} draws no random numbers and takes no seed.")

    def resolved(session: Session, target: str) -> derive.ResolvedRecipe:
        found = inputs.adapters(session, caller.principal, request.adapters)
        recipe = ComposeRecipe(
            operation_version=method.version,
            base=found.base.digest,
            target=target,
            inputs=found.inputs,
            method=method.name,
            parameters=parameters,
            seed=request.seed,
            dtype=request.dtype,
        )
        return derive.ResolvedRecipe(recipe, found.base.id, found.ids, found.title)

    return derive.submit(caller, request, "adapter", resolved)
