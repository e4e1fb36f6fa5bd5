"""Open the context from settings, for API processes and workers."""

from __future__ import annotations

import socket

from lora_registry.blobs.protocols import BlobStore
from lora_registry.blobs.remote import digests_in, serve
from lora_registry.context import Context
from lora_registry.db.engine import make_engine
from lora_registry.db.session import Database
from lora_registry.jobs.engine.client import DbosEngine
from lora_registry.processes.children import Children
from lora_registry.settings import ServiceSettings
from lora_registry.storage import open_blobs


def open_context(settings: ServiceSettings) -> Context:
    """Open database, blob store and job engine. They connect on first use."""
    settings.make_data_folder()
    engine = make_engine(settings.resolved_database_url)
    blobs = open_blobs(settings)
    return Context(settings, Database(engine), blobs, DbosEngine(engine), _checks(blobs))


def _checks(blobs: BlobStore) -> Children:
    """Processes that read the blobs that their request names through this one, and nothing else."""

    def serving(control: socket.socket, _module: str, request: str) -> None:
        serve(control, blobs, None, digests_in(request))

    return Children([("lora_registry.push.content",)], serve_blobs=serving)
