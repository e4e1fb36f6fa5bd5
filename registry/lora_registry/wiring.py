"""Open the context from settings, for API processes and workers."""

from __future__ import annotations

from lora_registry.context import Context
from lora_registry.db.engine import make_engine
from lora_registry.db.session import Database
from lora_registry.jobs.engine.client import DbosEngine
from lora_registry.settings import ServiceSettings
from lora_registry.storage import open_blobs


def open_context(settings: ServiceSettings) -> Context:
    """Open database, blob store and job engine. They connect on first use."""
    settings.make_data_folder()
    engine = make_engine(settings.resolved_database_url)
    return Context(settings, Database(engine), open_blobs(settings), DbosEngine(engine))
