"""The queue of a job: that of the CPU, or that of workers with a GPU."""

from __future__ import annotations

from typing import Final

from sqlmodel import Session

from lora_contract.recipe import Recipe, device_of
from lora_registry.db.tables import Version
from lora_registry.jobs.engine.lease_store import served_queues
from lora_registry.jobs.engine.port import Queue

SMALL_BASE: Final = 10**9
"""Largest base, in bytes, that a CPU validates or quantizes in acceptable time."""


def gpu_pays(session: Session, base: Version) -> bool:
    """Whether a GPU worker is alive and the base is large enough to benefit."""
    return base.size > SMALL_BASE and "gpu" in served_queues(session)


def queue_of(recipe: Recipe) -> Queue:
    """The queue of the jobs that compute a recipe."""
    return "gpu" if device_of(recipe) == "cuda" else "cpu"
