"""Open the blob store. Separate from `wiring`, so that a job's child process does not import the database."""

from __future__ import annotations

from pathlib import Path

from lora_registry.blobs.files import Files, open_files
from lora_registry.blobs.open import local_folder, open_store
from lora_registry.blobs.protocols import BlobStore
from lora_registry.blobs.s3_settings import S3Settings
from lora_registry.settings import ServiceSettings


def local_root(settings: ServiceSettings) -> Path | None:
    """Return the folder of the blobs; None if they are on a server."""
    return local_folder(settings.storage_url, settings.data.resolve())


def open_blobs(settings: ServiceSettings) -> BlobStore:
    return open_store(settings.storage_url, settings.data.resolve(), s3_settings(settings))


def open_records(settings: ServiceSettings) -> Files:
    """Open the place of exported records: `records/` beside the blobs, unless the settings name another."""
    beside = (settings.storage_url or str(settings.data.resolve())).rstrip("/") + "/records"
    return open_files(settings.records_url or beside, s3_settings(settings))


def s3_settings(settings: ServiceSettings) -> S3Settings:
    return S3Settings(
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        path_style=settings.s3_path_style,
        checksums=settings.s3_checksum,  # type: ignore[arg-type]  # checked by ServiceSettings
        verify=settings.s3_ca_bundle or True,
    )
