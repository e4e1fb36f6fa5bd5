"""The device of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, get_args

from sqlmodel import Session

from lora_contract.devices import Device, RecipeDevice
from lora_contract.recipe import Recipe
from lora_registry.db.tables import Version
from lora_registry.jobs import enqueue
from lora_registry.jobs.engine.port import JobEngine
from lora_registry.jobs.queues import gpu_pays

_DEVICES: Final[tuple[RecipeDevice, ...]] = get_args(RecipeDevice)


def choose(
    jobs: JobEngine,
    session: Session,
    requested: Device,
    recipe: Callable[[RecipeDevice], Recipe],
    *,
    base: Version,
    suited: bool,
) -> Recipe:
    """Return the recipe on the device that was requested.

    `auto` takes the job that exists already on either device, so that a request gives the same job whichever workers
    are alive, unless it failed or was cancelled; else a GPU, if the operation is suited to one, a worker has one and
    the base is large.

    recipe: returns the recipe on a device. suited: whether the operation computes much more than it reads and writes.
    """
    if requested != "auto":
        return recipe(requested)
    for device in _DEVICES:
        found = recipe(device)
        status = jobs.status(enqueue.derived_job_id(found))
        if status is not None and status.state not in ("failed", "cancelled"):
            return found
    return recipe("cuda" if suited and gpu_pays(session, base) else "cpu")
