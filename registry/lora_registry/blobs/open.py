"""Open the blob store that a setting names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from lora_contract.errors import RegistryError
from lora_registry.blobs.local import LocalStore
from lora_registry.blobs.protocols import BlobStore
from lora_registry.blobs.s3_settings import S3Settings


def open_store(url: str | None, data_dir: Path, settings: S3Settings | None = None) -> BlobStore:
    """Open the store at a URL: `s3://bucket/prefix`, `file:///folder`, a path; None: data_dir.

    A folder is created if it is missing; a bucket must exist, which `check()` verifies. Raises RegistryError `usage`
    for another scheme, `storage-unavailable` if a folder cannot be created. settings: of S3.
    """
    folder = local_folder(url, data_dir)
    if folder is not None:
        return LocalStore(folder)
    assert url is not None, "without a URL, the store is a folder"
    parts = urlsplit(url)
    if parts.scheme == "s3":
        # Importing boto3 takes 0.2 s, and a service on a folder does not need it.
        from lora_registry.blobs.s3 import connect

        return connect(url, settings or S3Settings())
    raise RegistryError(
        "usage", f"Unknown storage scheme {parts.scheme}://; use a folder, file:///folder or s3://bucket/prefix."
    )


def local_folder(url: str | None, data_dir: Path) -> Path | None:
    """Return the folder that a storage URL names; None if it names a server."""
    if url is None:
        return data_dir
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return Path(url) if "://" not in url else None
