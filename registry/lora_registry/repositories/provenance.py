"""The provenance of a derived version, from its recipe and the job that ran it."""

from __future__ import annotations

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import parse
from lora_contract.provenance import make_provenance
from lora_registry.auth.caller import Caller
from lora_registry.jobs import store as job_store
from lora_registry.repositories import resolve, store, views
from lora_registry.repositories.paths import VersionPath
from lora_registry.runtime.clock import iso


def show(caller: Caller, path: VersionPath) -> bytes:
    """Make the statement. Inputs that the caller may not read appear by digest alone.

    Raises `not-found` for a version that was pushed.
    """
    with caller.ctx.db.read() as session:
        repo, version = resolve.version(session, caller.principal, path)
        recipe = job_store.recipe(session, version.recipe_digest) if version.recipe_digest else None
        if recipe is None:
            raise RegistryError(
                "not-found",
                f"{repo.label}:v{version.number} was pushed: it has no recipe.",
                hint="Merged, composed, extracted, resized and converted versions have a recipe.",
            )
        edges = [edge for edge in store.edges_up(session, {version.id}) if edge.relation in ("base", "input")]
        inputs = views.readable_refs(session, caller.principal, {edge.parent_id for edge in edges})
        names = {ref.digest: f"{ref.namespace}/{ref.name}:v{ref.number}" for ref in inputs.values()}
        job = job_store.job_of_result(session, version.id)
        return make_provenance(
            f"{repo.label}",
            Digest.parse(version.digest),
            parse(version.manifest),
            recipe.body,
            names=names,
            job_id=job.id if job else None,
            finished=iso(version.created_at),
        )
