"""The folder of the cache.

    blobs/sha256/ab/abcdef…               bytes by digest, read-only; complete and verified
    downloads/abcdef….part                unfinished downloads, which are resumed
    snapshots/<namespace>/<name>/<commit>/ a version as a folder, its files linked to the blobs
    refs/<server>/<namespace>/<name>/     the last resolved version of each selector
    outputs/                              what `pull -o` wrote, by folder
    locks/                                one file per lock

Any number of processes may use it at once: everything becomes visible by one rename.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from lora_contract.digest import Digest
from lora_contract.manifest import FileEntry, Manifest, parse
from lora_reg.cache.lock import locked
from lora_reg.disk import check_space, publish_folder, replace_file, sync_folder


class Cache:
    """The cache in one folder, which is created by the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, digest: Digest) -> Path:
        return self.root / "blobs" / "sha256" / digest.hex[:2] / digest.hex

    def part(self, digest: Digest) -> Path:
        return self.root / "downloads" / f"{digest.hex}.part"

    def lock(self, name: str, stop: threading.Event | None = None) -> AbstractContextManager[bool]:
        return locked(self.root / "locks" / f"{name}.lock", stop)

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the complete blob is here. A file of another size is damaged and counts as missing."""
        try:
            return self.blob(digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def missing(self, entries: Iterable[FileEntry]) -> list[FileEntry]:
        """The entries whose blobs are missing, each digest once."""
        lacking = {entry.digest: entry for entry in entries if not self.has(entry.digest, entry.size)}
        return sorted(lacking.values())

    def adopt(self, staged: Path, digest: Digest) -> None:
        """Turn a verified file into the blob, read-only and visible in one step."""
        target = self.blob(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.chmod(0o444)
        staged.replace(target)
        sync_folder(target.parent)

    def put(self, data: bytes, digest: Digest) -> None:
        """Store a small verified blob."""
        with self.staging() as folder:
            staged = folder / "blob"
            replace_file(staged, data, staged=folder / "new")
            self.adopt(staged, digest)

    def manifest(self, digest: Digest) -> Manifest | None:
        """A version's manifest; None if it is missing or damaged."""
        try:
            data = self.blob(digest).read_bytes()
        except FileNotFoundError:
            return None
        return parse(data) if Digest.of(data) == digest else None

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A private folder on the same file system, removed at the end."""
        folder = self.root / "tmp" / secrets.token_hex(8)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def snapshot(self, namespace: str, name: str, digest: Digest, manifest: Manifest) -> Path:
        """The version as a folder, made if it is missing or damaged. All blobs must be here."""
        target = self.root / "snapshots" / namespace / name / digest.commit
        if _is_whole(target, manifest):
            return target
        with self.lock(f"snapshot-{digest.hex}"), self.staging() as staging:
            if _is_whole(target, manifest):
                return target
            staged = staging / "new"
            for entry in manifest.files:
                place = staged / entry.path
                place.parent.mkdir(parents=True, exist_ok=True)
                _link(self.blob(entry.digest), place)
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                target.rename(staging / "damaged")
            publish_folder(staged, target, occupied=False)
        return target

    def check_space(self, needed: int) -> None:
        """Raise `storage-unavailable` if the disk has less than `needed` bytes free."""
        check_space(self.root, needed)


def _link(source: Path, target: Path) -> None:
    """Link a file, or copy it if the file system has no hard links or the source has too many."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        shutil.copyfile(source, target)
        target.chmod(0o444)


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    try:
        return all((folder / entry.path).stat().st_size == entry.size for entry in manifest.files)
    except (FileNotFoundError, NotADirectoryError):
        return False
