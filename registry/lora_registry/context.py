"""The service's dependencies: created once, in `wiring`, and passed down."""

from __future__ import annotations

from dataclasses import dataclass

from lora_registry.blobs.protocols import BlobStore
from lora_registry.db.session import Database
from lora_registry.jobs.engine.port import JobEngine
from lora_registry.settings import ServiceSettings


@dataclass(frozen=True, slots=True)
class Context:
    settings: ServiceSettings
    db: Database
    blobs: BlobStore
    jobs: JobEngine
