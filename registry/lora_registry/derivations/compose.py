"""Compositions: combine adapters of one base into one adapter."""

from __future__ import annotations

from sqlmodel import Session

from lora_contract.devices import RecipeDevice
from lora_contract.errors import RegistryError
from lora_contract.methods import METHODS, check_parameters, find_method
from lora_contract.recipe import ComposeRecipe
from lora_contract.wire.jobs import JobView
from lora_contract.wire.operations import ComposeRequest
from lora_registry.auth.caller import Caller
from lora_registry.derivations import devices, inputs
from lora_registry.derivations import recipe_job as derive


def submit(caller: Caller, request: ComposeRequest) -> JobView:
    """Start a composition, or find its job: see `derive.submit`. Also raises what `check_parameters` raises."""
    method = find_method(request.method)
    parameters = check_parameters(request.method, request.parameters)
    if request.seed and not method.seeded:
        # An ignored seed would give two jobs with the same result.
        raise RegistryError("invalid-request", f"The method {method.name} uses no random numbers and accepts no seed.")
    if request.device == "cuda" and not method.dense:
        dense = ", ".join(name for name, known in METHODS.items() if known.dense)
        raise RegistryError(
            "unsupported",
            f"The device `cuda` was requested, and {method.name} computes on factors alone; none of it runs on a GPU.",
            hint=f"Use the device `cpu`, or one of the methods {dense}.",
        )

    def resolve_recipe(session: Session, target: str) -> derive.ResolvedRecipe:
        found = inputs.adapters(session, caller.principal, request.adapters)

        def on(device: RecipeDevice) -> ComposeRecipe:
            return ComposeRecipe(
                operation_version=method.version,
                base=found.base.digest,
                target=target,
                inputs=found.inputs,
                method=method.name,
                parameters=parameters,
                seed=request.seed,
                dtype=request.dtype,
                device=device,
            )

        recipe = devices.choose(caller.ctx.jobs, session, request.device, on, base=found.base, suited=method.dense)
        return derive.ResolvedRecipe(recipe, found.base.id, found.ids, found.title, found.mentions)

    return derive.submit(caller, request, "adapter", resolve_recipe)
