"""Named files beside blobs: in a folder, or under a prefix of a bucket. They appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from lora_contract.errors import RegistryError
from lora_registry.blobs.disk import disk, sync_folder
from lora_registry.blobs.s3_settings import S3Settings

CHUNK: Final = 256 * 1024


class Written(NamedTuple):
    size: int
    sha256: str


class Files(Protocol):
    """Names are relative paths of one or more folders."""

    def write(self, name: str, chunks: Iterable[bytes]) -> Written:
        """Store a file, in place of one of the same name."""

    def read(self, name: str) -> Iterator[bytes]:
        """Raises RegistryError `not-found`."""

    def names(self, folder: str) -> list[str]:
        """All names under a folder, sorted."""

    def remove(self, name: str) -> None: ...


class FolderFiles:
    """Files for their owner alone."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, name: str, chunks: Iterable[bytes]) -> Written:
        target = self._root / name
        with disk():
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        sha256, size = hashlib.sha256(), 0
        with disk():
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for chunk in chunks:
                    sha256.update(chunk)
                    size += len(chunk)
                    with disk():
                        file.write(chunk)
                with disk():
                    file.flush()
                    os.fsync(file.fileno())
            with disk():
                staged.rename(target)
        finally:
            staged.unlink(missing_ok=True)
        for folder in (target.parent, target.parent.parent):
            sync_folder(folder)
        return Written(size, sha256.hexdigest())

    def read(self, name: str) -> Iterator[bytes]:
        try:
            file = (self._root / name).open("rb")
        except FileNotFoundError:
            raise RegistryError("not-found", f"There is no file {name}.") from None
        with file:
            while chunk := file.read(CHUNK):
                yield chunk

    def names(self, folder: str) -> list[str]:
        found = (path.relative_to(self._root) for path in (self._root / folder).rglob("*") if path.is_file())
        return sorted(str(path) for path in found)

    def remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)


class BucketFiles:
    """Files under a prefix of a bucket, reached with the S3 settings of the service."""

    def __init__(self, url: str, settings: S3Settings) -> None:
        from lora_registry.blobs.s3_client import make_client
        from lora_registry.blobs.s3_objects import Objects

        parts = urlsplit(url)
        folder = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
        self._objects = Objects(bucket=parts.netloc, prefix=folder, client=make_client(settings), settings=settings)

    def write(self, name: str, chunks: Iterable[bytes]) -> Written:
        sha256, size = hashlib.sha256(), 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                sha256.update(chunk)
                size += len(chunk)
                yield chunk

        stream = counted()
        first = next(stream, b"")
        if not first:
            self._objects.put(name, b"")
        else:
            self._objects.upload(name, _after(first, stream), None)
        return Written(size, sha256.hexdigest())

    def read(self, name: str) -> Iterator[bytes]:
        response = self._objects.get(name, 0, None)
        yield from self._objects.chunks(response, name, 0, int(response["ContentLength"]), CHUNK)

    def names(self, folder: str) -> list[str]:
        return sorted(item["Key"] for item in self._objects.list(folder))

    def remove(self, name: str) -> None:
        self._objects.remove(name)


def open_files(url: str, settings: S3Settings) -> Files:
    """Open a folder, which need not exist, `file:///folder` or `s3://bucket/prefix`. Raises RegistryError `usage`."""
    scheme = urlsplit(url).scheme if "://" in url else ""
    if scheme == "s3":
        return BucketFiles(url, settings)
    if scheme in ("", "file"):
        return FolderFiles(Path(unquote(urlsplit(url).path) if scheme else url).resolve())
    raise RegistryError("usage", f"{scheme}:// is not a place for files; use a folder or s3://bucket/prefix.")


def _after(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
