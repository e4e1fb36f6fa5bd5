"""From settings to an open context: what the API process and the workers share."""

from __future__ import annotations

from lora_registry.blobs.open import open_store
from lora_registry.blobs.protocols import BlobStore
from lora_registry.blobs.s3_settings import S3Settings
from lora_registry.context import Context
from lora_registry.db.engine import make_engine
from lora_registry.db.session import Database
from lora_registry.jobs.engine import DbosEngine
from lora_registry.settings import Settings


def open_context(settings: Settings) -> Context:
    """Database, blob store and job engine. Connections are made on first use."""
    settings.data.mkdir(parents=True, exist_ok=True)
    engine = make_engine(settings.resolved_database_url)
    return Context(settings, Database(engine), open_blobs(settings), DbosEngine(engine))


def open_blobs(settings: Settings) -> BlobStore:
    return open_store(
        settings.storage_url,
        settings.data.resolve(),
        S3Settings(
            endpoint_url=settings.s3_endpoint_url,
            region=settings.s3_region,
            path_style=settings.s3_path_style,
            checksums=settings.s3_checksum,  # type: ignore[arg-type]  # checked by Settings
            verify=settings.s3_ca_bundle or True,
        ),
    )
