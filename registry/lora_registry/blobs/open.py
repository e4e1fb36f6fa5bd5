"""From a setting to a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from lora_contract.errors import RegistryError
from lora_registry.blobs.local import LocalStore
from lora_registry.blobs.protocols import BlobStore
from lora_registry.blobs.s3_settings import S3Settings


def open_store(url: str | None, data_dir: Path, settings: S3Settings | None = None) -> BlobStore:
    """The store that `LORA_REG_STORAGE_URL` names: `s3://bucket/prefix`, `file:///folder`, a path; None: data_dir.

    A folder is made if need be; a bucket must exist, which `check()` shows. Raises RegistryError `usage` on
    another scheme, `storage-unavailable` where a folder cannot be made. `settings` concern S3 alone.
    """
    if url is None:
        return LocalStore(data_dir)
    parts = urlsplit(url)
    if parts.scheme == "s3":
        # boto3 takes a fifth of a second to import; a service on a folder does not pay it.
        from lora_registry.blobs.s3 import connect

        return connect(url, settings or S3Settings())
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalStore(Path(unquote(parts.path)))
    if "://" not in url:
        return LocalStore(Path(url))
    raise RegistryError(
        "usage", f"Storage {parts.scheme}:// is not known; use a folder, file:///folder or s3://bucket/prefix."
    )
