"""Write a version to a folder: completely or not at all, and never over files that a pull did not write.

Records of what was written are kept in the cache, not in the folder, which holds only the files of the version.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from lora_contract import decoding
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import FileEntry, Manifest
from lora_reg.cache.store import Cache
from lora_reg.disk import check_space, publish_folder, replace_file

_CHUNK: Final = 1 << 20


class Written(msgspec.Struct, frozen=True):
    """A folder that a pull wrote. files: path -> (digest, size, inode, mtime in ns) when it was written."""

    path: str
    digest: str
    files: dict[str, tuple[str, int, int, int]]


def write_folder(target: Path, digest: Digest, manifest: Manifest, cache: Cache) -> bool:
    """Write the files of the version to `target`. Returns False if they are there already.

    A folder that an earlier pull wrote, unchanged since, is replaced. Raises `exists` for any other existing file or
    folder, `digest-mismatch` if a blob in the cache is damaged (it is then removed).
    """
    target = Path(os.path.realpath(target))
    record = _record(cache, target)
    occupied = os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir()))
    if occupied:
        if not target.is_dir():
            raise _in_the_way(target, "is a file")
        found = _look(target, record)
        if found == {entry.path: str(entry.digest) for entry in manifest.files}:
            _remember(cache, target, digest, manifest)
            return False
        if record is None:
            raise _in_the_way(target, "exists and contains other files")
        if found != {path: kept[0] for path, kept in record.files.items()}:
            raise _in_the_way(target, "was changed since it was pulled")
    target.parent.mkdir(parents=True, exist_ok=True)
    check_space(target.parent, sum(entry.size for entry in manifest.files))
    staged = target.parent / f".{target.name}.{secrets.token_hex(6)}.partial"
    try:
        for entry in manifest.files:
            _copy(cache, entry, staged / entry.path)
        _publish(staged, target, occupied=occupied)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    _remember(cache, target, digest, manifest)
    return True


def _publish(staged: Path, target: Path, *, occupied: bool) -> None:
    try:
        publish_folder(staged, target, occupied=occupied)
    except OSError as error:
        if occupied or error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise _in_the_way(target, "was created by another process meanwhile") from error


def _copy(cache: Cache, entry: FileEntry, place: Path) -> None:
    """Copy a blob out of the cache and verify its digest."""
    place.parent.mkdir(parents=True, exist_ok=True)
    blob = cache.blob(entry.digest)
    state = hashlib.sha256()
    with blob.open("rb", buffering=0) as source, place.open("xb", buffering=0) as sink:
        while piece := source.read(_CHUNK):
            state.update(piece)
            view = memoryview(piece)
            while view:
                view = view[sink.write(view) :]
        os.fsync(sink.fileno())
    if state.hexdigest() != entry.digest.hex:
        blob.unlink(missing_ok=True)
        raise RegistryError(
            "digest-mismatch", f"{entry.path} in the cache was damaged and has been removed.", hint="Pull again."
        )


def _look(target: Path, record: Written | None) -> dict[str, str]:
    """Digests of the files in a folder, by path; `link` and `other` for entries that are not regular files.

    A file with the recorded inode, size and mtime is not read again.
    """
    found: dict[str, str] = {}
    for path, entry in _walk(target, ""):
        status = entry.stat(follow_symlinks=False)
        if not entry.is_file(follow_symlinks=False):
            found[path] = "link" if entry.is_symlink() else "other"
            continue
        kept = record.files.get(path) if record else None
        if kept is not None and kept[1:] == (status.st_size, status.st_ino, status.st_mtime_ns):
            found[path] = kept[0]
            continue
        with open(entry.path, "rb") as file:
            found[path] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    return found


def _walk(root: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(root / prefix) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry


def _record(cache: Cache, target: Path) -> Written | None:
    try:
        found = decoding.decode(_record_path(cache, target).read_bytes(), Written)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return found if found.path == str(target) else None


def _remember(cache: Cache, target: Path, digest: Digest, manifest: Manifest) -> None:
    files = {}
    for entry in manifest.files:
        status = (target / entry.path).stat()
        files[entry.path] = (str(entry.digest), status.st_size, status.st_ino, status.st_mtime_ns)
    place = _record_path(cache, target)
    data = msgspec.json.encode(Written(str(target), str(digest), files))
    if place.exists() and place.read_bytes() == data:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with cache.staging() as folder:
        replace_file(place, data, staged=folder / "output")


def _record_path(cache: Cache, target: Path) -> Path:
    return cache.root / "outputs" / f"{hashlib.sha256(os.fsencode(target)).hexdigest()}.json"


def _in_the_way(target: Path, how: str) -> RegistryError:
    return RegistryError("exists", f"{target} {how}.", hint="Choose another folder with -o, or move this one away.")
