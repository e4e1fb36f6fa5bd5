"""The stores that the behaviour suite runs over, with what a test needs to look behind them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lora_contract.digest import Digest
from lora_registry.blobs import keys
from lora_registry.blobs.local import LocalStore
from lora_registry.blobs.protocols import BlobStore
from tests.support.s3 import BUCKET, S3Server


class Place(Protocol):
    store: BlobStore
    many: int
    """Blobs enough to see paging, where that is affordable."""
    large: int
    """Bytes enough to need several parts."""
    verify: ssl.SSLContext | bool
    """For httpx."""

    def leave_upload(self, upload: str, name: str, data: bytes) -> None:
        """Put bytes where a presigned PUT would have put them."""

    def leftovers(self) -> list[str]:
        """All that is no blob: uploads, temporary files, unfinished multipart uploads."""


@dataclass
class LocalPlace:
    root: Path
    many: int = 1100
    large: int = 20_000_000
    verify: ssl.SSLContext | bool = True

    def __post_init__(self) -> None:
        self.store: BlobStore = LocalStore(self.root)

    def leave_upload(self, upload: str, name: str, data: bytes) -> None:
        path = self.root / keys.upload_prefix(upload) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    def leftovers(self) -> list[str]:
        folders = (self.root / keys.TMP, self.root / keys.UPLOADS)
        return [str(path.relative_to(self.root)) for folder in folders for path in folder.rglob("*")]


@dataclass
class S3Place:
    server: S3Server
    prefix: str
    tls: bool
    many: int
    large: int = 20_000_000

    def __post_init__(self) -> None:
        self.store: BlobStore = self.server.store(prefix=self.prefix, tls=self.tls)
        self.verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=self.server.ca) if self.tls else True

    @property
    def client(self) -> Any:
        return self.server.client(self.server.settings(tls=self.tls))

    def leave_upload(self, upload: str, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"{self.prefix}/{keys.upload_prefix(upload)}{name}", Body=data)

    def leftovers(self) -> list[str]:
        where = {"Bucket": BUCKET, "Prefix": f"{self.prefix}/"}
        pages = self.client.get_paginator("list_objects_v2").paginate(**where)
        names = [item["Key"].removeprefix(where["Prefix"]) for page in pages for item in page.get("Contents", [])]
        unfinished = self.client.list_multipart_uploads(**where).get("Uploads", [])
        return [name for name in names if keys.parse_blob_key(name) is None] + [item["Key"] for item in unfinished]


def blob(data: bytes) -> tuple[Digest, int]:
    return Digest.of(data), len(data)
