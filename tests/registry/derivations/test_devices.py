"""The device of a job: in its recipe, its queue and its record."""

from __future__ import annotations

from typing import Any, cast

import pytest
from sqlmodel import Session

from lora_contract.recipe import MergeRecipe, RecipeInput
from lora_registry.db.engine import make_engine
from lora_registry.db.tables import Version
from lora_registry.derivations import devices
from lora_registry.jobs import queues
from lora_registry.jobs.engine import lease_store
from lora_registry.jobs.engine.port import JobEngine
from tests.registry.site import Site, problem, unique


class NoJobs:
    """An engine without jobs."""

    def status(self, job_id: str) -> None:
        return None


NO_JOBS = cast(JobEngine, NoJobs())


def posted(site: Site, route: str, **asked: Any) -> dict[str, Any]:
    answer = site.client.post(f"/api/v1/{route}", json=asked)
    assert answer.status_code in (200, 201, 202), answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_merge_on_a_gpu_is_another_job_and_waits_for_a_worker_that_has_one(site: Site) -> None:
    name, out = unique("m"), unique("out")
    site.pushed("ns", name, 61)
    asked = {"adapters": [{"adapter": f"ns/{name}"}], "to": f"ns/{out}"}
    gpu = posted(site, "merges", **asked, device="cuda")
    assert (gpu["state"], gpu["queue"]) == ("queued", "gpu")
    assert gpu["waiting_for"] == "a worker that takes jobs from the queue gpu; none is running"
    # Without a GPU at work, `auto` takes the job that there is: the same request is the same job.
    assert posted(site, "merges", **asked, device="auto")["id"] == gpu["id"]
    cpu = posted(site, "merges", **asked)
    assert cpu["id"] != gpu["id"] and cpu["queue"] == "cpu"
    assert posted(site, "merges", **asked, device="auto")["id"] == cpu["id"]
    # One that ended without a result is no reason to wait for a GPU again.
    for job in (cpu, gpu):
        assert site.client.post(f"/api/v1/jobs/{job['id']}/cancel").status_code == 200
    again = posted(site, "merges", **asked, device="auto")
    assert (again["id"], again["queue"]) == (cpu["id"], "cpu")
    site.client.post(f"/api/v1/jobs/{again['id']}/cancel")


def test_methods_on_factors_are_refused_on_a_gpu(site: Site) -> None:
    name = unique("m")
    site.pushed("ns", name, 62)
    asked = {"adapters": [{"adapter": f"ns/{name}"}], "to": f"ns/{unique('out')}", "method": "svd", "device": "cuda"}
    refused = problem(site.client.post("/api/v1/compositions", json=asked), "unsupported")
    assert "svd computes on factors alone" in refused["detail"] and "ties_svd" in refused["hint"]
    problem(site.client.post("/api/v1/compositions", json={**asked, "device": "tpu"}), "invalid-request")


@pytest.mark.parametrize(
    ("suited", "size", "queue", "device"),
    [
        (True, queues.SMALL_BASE + 1, "cpu,gpu", "cuda"),
        (True, queues.SMALL_BASE + 1, "cpu", "cpu"),
        (True, queues.SMALL_BASE, "cpu,gpu", "cpu"),
        (False, queues.SMALL_BASE + 1, "cpu,gpu", "cpu"),
    ],
)
def test_auto_takes_a_gpu_that_is_at_work_for_what_it_suits(
    site: Site, suited: bool, size: int, queue: str, device: str
) -> None:
    engine = make_engine(site.database)
    worker = unique("worker")
    claim = {"executor_id": worker, "instance": "one", "host": "h", "lease_seconds": 60.0}
    assert lease_store.claim(engine, queues=queue, **claim)  # type: ignore[arg-type]
    try:
        with Session(engine) as session:
            chosen = devices.choose(
                NO_JOBS,
                session,
                "auto",
                lambda device: MergeRecipe(
                    operation_version=1, base="b", target=unique("t"), inputs=(RecipeInput("d"),), device=device
                ),
                base=Version(size=size),
                suited=suited,
            )
        assert isinstance(chosen, MergeRecipe) and chosen.device == device
        assert queues.queue_of(chosen) == ("gpu" if device == "cuda" else "cpu")
    finally:
        lease_store.release(engine, executor_id=worker, instance="one")
        engine.dispose()
