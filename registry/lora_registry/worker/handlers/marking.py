"""Mark the blobs that a job found damaged or missing. Its child has no database; the error names the blob."""

from __future__ import annotations

from typing import Any

from lora_contract.errors import RegistryError
from lora_registry.context import Context
from lora_registry.jobs.engine.kinds import Handler, JobContext, SpecT
from lora_registry.keeping import damage


def marking(ctx: Context, handler: Handler[SpecT]) -> Handler[SpecT]:
    """Return a handler that marks the blob of an error `corrupt` before the job fails with it."""

    def run(job: JobContext, spec: SpecT) -> Any:
        try:
            return handler(job, spec)
        except RegistryError as error:
            if error.code == "corrupt" and "blob" in error.facts:
                job.step("mark", _mark, ctx, error.facts["blob"])
            raise

    return run


def _mark(ctx: Context, blob: dict[str, str]) -> bool:
    return damage.mark(ctx, damage.place_of(blob), blob["state"])
