"""The service's dependencies: created once, in `wiring`, and passed down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lora_registry.blobs.protocols import BlobStore
from lora_registry.db.session import Database
from lora_registry.jobs.engine.port import JobEngine
from lora_registry.oidc.keys import KeyCache
from lora_registry.oidc.verdicts import Verdicts
from lora_registry.processes.children import Children
from lora_registry.settings import ServiceSettings


@dataclass(frozen=True, slots=True)
class Context:
    settings: ServiceSettings
    db: Database
    blobs: BlobStore
    jobs: JobEngine
    checks: Children
    """Child processes that check what was pushed."""
    keys: KeyCache = field(default_factory=KeyCache)
    """Signing keys of the issuers of identity tokens."""
    verdicts: Verdicts[Any] = field(default_factory=Verdicts)
    """Callers by service account tokens that were verified a moment ago."""
