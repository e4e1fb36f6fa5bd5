"""Where backups are kept: a folder, or a prefix of a bucket. Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from lora_contract import decoding
from lora_contract.errors import RegistryError
from lora_registry.backup import document
from lora_registry.backup.document import Document, Part
from lora_registry.blobs.files import BucketFiles, FolderFiles, Written
from lora_registry.blobs.local import LocalStore
from lora_registry.blobs.protocols import BlobStore
from lora_registry.blobs.s3_settings import S3Settings


class Place(Protocol):
    """Named files beside a blob store. scratch: a folder for temporary files; None: it is no folder."""

    blobs: BlobStore
    scratch: Path | None

    def write(self, name: str, chunks: Iterable[bytes]) -> Written: ...

    def read(self, name: str) -> Iterator[bytes]:
        """Raises RegistryError `not-found`."""

    def names(self, folder: str) -> list[str]:
        """All names under a folder, sorted."""

    def remove(self, name: str) -> None: ...


class FolderPlace(FolderFiles):
    """A folder for its owner alone: backups hold the hashes of tokens, and weights."""

    def __init__(self, root: Path, *, create: bool) -> None:
        super().__init__(root)
        self.scratch: Path | None = root / "tmp"
        if create:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in ("blobs", "tmp", "uploads", document.FOLDER):
                (root / folder).mkdir(mode=0o700, exist_ok=True)
                (root / folder).chmod(0o700)
        elif not (root / document.FOLDER).is_dir():
            what = "finished backup in" if root.is_dir() else "folder"
            raise RegistryError("not-found", f"There is no {what} {root}.", hint="Name the destination of a backup.")
        self.blobs: BlobStore = LocalStore(root)

    def remove(self, name: str) -> None:
        super().remove(name)
        with contextlib.suppress(OSError):
            (self._root / name).parent.rmdir()


class BucketPlace(BucketFiles):
    """A prefix of a bucket."""

    scratch: Path | None = None

    def __init__(self, url: str, settings: S3Settings) -> None:
        from lora_registry.blobs.s3 import connect

        super().__init__(url, settings)
        self.blobs: BlobStore = connect(url, settings)


def open_place(url: str, settings: S3Settings, *, create: bool) -> Place:
    """Open a folder, `file:///folder` or `s3://bucket/prefix`. create: a missing folder. Raises RegistryError `usage`,
    `not-found`."""
    scheme = urlsplit(url).scheme if "://" in url else ""
    if scheme == "s3":
        return BucketPlace(url, settings)
    if scheme in ("", "file"):
        return FolderPlace(Path(urlsplit(url).path if scheme else url).resolve(), create=create)
    raise RegistryError("usage", f"{scheme}:// is not a place for backups; use a folder or s3://bucket/prefix.")


def path(backup_id: str, name: str) -> str:
    return f"{document.FOLDER}{backup_id}/{name}"


def finished(place: Place) -> list[str]:
    """Ids of the finished backups, oldest first."""
    ending = f"/{document.DOCUMENT}"
    return [name[len(document.FOLDER) : -len(ending)] for name in place.names(document.FOLDER) if name.endswith(ending)]


def files(place: Place, backup_id: str) -> list[str]:
    return [name for name in place.names(document.FOLDER) if name.startswith(path(backup_id, ""))]


def unfinished(place: Place) -> set[str]:
    """Ids of backups without a document: they run, or were killed."""
    return {name.split("/")[1] for name in place.names(document.FOLDER)} - set(finished(place))


def remove_unfinished(place: Place, *, older_than: float) -> None:
    """Remove what backups left that were killed, if they began this many seconds ago."""
    for backup_id in unfinished(place):
        if document.age_of(backup_id) > older_than:
            for name in files(place, backup_id):
                place.remove(name)


def load(place: Place, backup_id: str | None) -> Document:
    """Load a backup's document; None: the newest. Raises RegistryError `not-found`, `corrupt`."""
    known = finished(place)
    if not known or (backup_id is not None and backup_id not in known):
        what = f"no finished backup {backup_id}" if backup_id else "no finished backup"
        raise RegistryError("not-found", f"There is {what} here.", hint=f"Known: {', '.join(known[-5:]) or 'none'}.")
    chosen = backup_id or known[-1]
    data = b"".join(place.read(path(chosen, document.DOCUMENT)))
    try:
        return decoding.decode(data[: document.MAX_DOCUMENT], Document)
    except msgspec.MsgspecError as error:
        raise RegistryError("corrupt", f"{document.DOCUMENT} of the backup {chosen} is malformed: {error}.") from error


def read_part(place: Place, backup_id: str, name: str, part: Part) -> Iterator[bytes]:
    """Yield a file of a backup. Raises RegistryError `digest-mismatch` at the end if it is not what was written."""
    sha256 = hashlib.sha256()
    for chunk in place.read(path(backup_id, name)):
        sha256.update(chunk)
        yield chunk
    if sha256.hexdigest() != part.sha256:
        raise RegistryError(
            "digest-mismatch",
            f"The file {name} of the backup {backup_id} is damaged: its sha256 is {sha256.hexdigest()[:12]}, expected "
            f"{part.sha256[:12]}.",
            hint="Use another backup; `lora-registry backup DEST --verify` reads one back.",
        )


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split a stream into lines with their ends; memory grows with the longest line alone."""
    rest = b""
    for chunk in chunks:
        *whole, last = chunk.split(b"\n")
        if not whole:
            rest += last
            continue
        yield rest + whole[0] + b"\n"
        for line in whole[1:]:
            yield line + b"\n"
        rest = last
    if rest:
        yield rest
