"""The store behind a service, to damage it behind its back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.registry.site import Site, open_site, unique
from tests.support.s3 import BUCKET, REGION, S3Server


class Shelf(Protocol):
    """Objects by the sha256 of what they should hold."""

    def read(self, data: bytes) -> bytes | None: ...

    def write(self, data: bytes, changed: bytes | None) -> None:
        """Replace the object of `data`; None: remove it."""

    def objects(self) -> dict[str, int]:
        """Names and sizes of all blobs."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flipped(data: bytes, at: int = -8, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


class Folder:
    def __init__(self, data: Path) -> None:
        self.root = data / "blobs" / "sha256"

    def _path(self, data: bytes) -> Path | None:
        return next(iter(self.root.glob(f"*/{sha256(data)}*")), None)

    def read(self, data: bytes) -> bytes | None:
        path = self._path(data)
        return path.read_bytes() if path else None

    def write(self, data: bytes, changed: bytes | None) -> None:
        path = self._path(data)
        assert path is not None
        path.unlink()
        if changed is not None:
            path.write_bytes(changed)

    def objects(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self.root.glob("*/*")}


class Bucket:
    def __init__(self, server: S3Server, prefix: str) -> None:
        self.client: Any = server.client(server.settings())
        self.prefix = f"{prefix}/blobs/sha256/"

    def _key(self, data: bytes) -> str | None:
        hexed = sha256(data)
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{self.prefix}{hexed[:2]}/{hexed}")
        return next((item["Key"] for item in found.get("Contents", [])), None)

    def read(self, data: bytes) -> bytes | None:
        key = self._key(data)
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() if key else None

    def write(self, data: bytes, changed: bytes | None) -> None:
        key = self._key(data)
        assert key is not None
        if changed is None:
            self.client.delete_object(Bucket=BUCKET, Key=key)
        else:
            self.client.put_object(Bucket=BUCKET, Key=key, Body=changed)

    def objects(self) -> dict[str, int]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self.prefix)
        return {i["Key"].rpartition("/")[2]: i["Size"] for page in pages for i in page.get("Contents", [])}


def s3_environment(server: S3Server, prefix: str) -> dict[str, str]:
    return {
        "LORA_REG_STORAGE_URL": f"s3://{BUCKET}/{prefix}",
        "LORA_REG_S3_ENDPOINT_URL": server.http,
        "LORA_REG_S3_REGION": REGION,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
    }


@contextmanager
def shelved(kind: str, folder: Path, postgres: str, s3: S3Server | None, **extra: str) -> Iterator[tuple[Site, Shelf]]:
    """A service with its store: `sqlite-folder`, `postgresql-folder`, `postgresql-s3`."""
    database, _, store = kind.partition("-")
    environment = dict(extra)
    prefix = unique("kept")
    if store == "s3":
        assert s3 is not None
        environment |= s3_environment(s3, prefix)
    with open_site(database, folder, postgres, extra=environment) as site:
        if s3 is None:
            site.serve()
        else:
            with s3.credentials():
                site.serve()
                site.thread.context.blobs.check()  # type: ignore[union-attr]  # boto finds its credentials now
        site.need_base()
        yield site, (Folder(site.data) if s3 is None else Bucket(s3, prefix))
