"""The staging folder of a result: invisible, locked, kept if its files can be reused."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from lora_contract import decoding
from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.records import FileRecord
from lora_kernels.checkpoint.sinks import no_space

_RECORDS: Final = ".finished"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


_Notes = TypeVar("_Notes")


class FinishedFile(msgspec.Struct, Generic[_Notes], frozen=True):
    """A complete file of the result. notes: what the writer needs about it to resume."""

    file: FileRecord
    notes: _Notes


class Staging(Generic[_Notes]):
    """The staging folder of a merge, and its complete files.

    boot: boot ID of the system. Files are not synced one by one, which would cost more than the merge: they survive a
    crash of the process but not of the machine, so records from before the last boot are ignored. If no boot ID is
    available (None), resuming is disabled. notes: type of the notes kept with each finished file.
    """

    def __init__(self, folder: Path, boot: str | None, notes: type[_Notes]) -> None:
        self.folder = folder
        self._notes = notes
        self._records = folder / _RECORDS
        self._boot = boot
        self.finished = self._read()

    def finish(self, done: FinishedFile[_Notes]) -> None:
        """Record a complete file, after it is written and closed."""
        if self._boot is not None:
            self._write_record(done)
        self.finished[done.file.path] = done

    def _write_record(self, done: FinishedFile[_Notes]) -> None:
        self._records.mkdir(exist_ok=True)
        name = hashlib.sha256(done.file.path.encode()).hexdigest()
        partial = self._records / f"{name}.partial"
        partial.write_bytes(msgspec.json.encode({"boot": self._boot, "done": done}))
        partial.rename(self._records / f"{name}.json")

    def clear(self) -> None:
        """Remove the records, which are not part of the result."""
        shutil.rmtree(self._records, ignore_errors=True)

    def _read(self) -> dict[str, FinishedFile[_Notes]]:
        """The files that an earlier attempt completed; removes its other files."""
        found = {}
        for path in sorted(self._records.glob("*.json")) if self._boot is not None else ():
            done = self._read_record(path)
            target = self.folder / done.file.path if done is not None else None
            if done is not None and target is not None and target.is_file() and target.stat().st_size == done.file.size:
                found[done.file.path] = done
        for entry in self.folder.iterdir():
            if entry.name == _RECORDS or entry.name in found:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        return found

    def _read_record(self, path: Path) -> FinishedFile[_Notes] | None:
        """A record; None if it is damaged or from before the last boot."""
        try:
            record = decoding.decode(path.read_bytes(), _Record[self._notes])  # type: ignore[name-defined]
        except (OSError, msgspec.DecodeError):
            return None
        return record.done if record.boot == self._boot else None


def identity_of(plan: Any, folders: Sequence[str | os.PathLike[str]]) -> str:
    """Identity of a merge, 32 hex digits: the plan, and the input files by size, inode and mtime. A merge may resume
    with the files of another with the same identity."""
    files = [
        (str(entry.name), status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)
        for folder in folders
        for entry in sorted(Path(folder).iterdir())
        if (status := entry.stat())
    ]
    return hashlib.sha256(msgspec.json.encode([plan, files])).hexdigest()[:32]


@contextmanager
def staged_folder(final: Path, *, needed: int) -> Iterator[Path]:
    """A folder beside `final`, renamed to it if the block succeeds and removed otherwise (by the next attempt if the
    process was killed).

    needed: bytes that will be written, to detect a lack of disk space before the work. Raises RegistryError `exists` if
    `final` exists and is not an empty folder, `storage-unavailable` if disk space is insufficient.
    """
    _check_final(final)
    folder, lock = _locked(final, secrets.token_hex(4))
    try:
        _remove_leftovers(final)
        _check_space(final, needed)
        yield folder
        _publish(folder, final)
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def resumable_folder(final: Path, *, needed: int, identity: str, notes: type[_Notes]) -> Iterator[Staging[_Notes]]:
    """Like `staged_folder`, but kept if the block was interrupted or ran out of space after a file was finished, so
    that the next attempt can resume.

    identity: see `identity_of`. If another process does the same work, this one starts from scratch in its own folder.
    notes: type of the notes kept with each finished file.
    """
    _check_final(final)
    folder, lock = _locked(final, identity)
    keep = False
    try:
        staging = Staging(folder, _boot_id(), notes)
        _remove_leftovers(final)
        _check_space(final, needed - sum(done.file.size for done in staging.finished.values()))
        try:
            yield staging
        except BaseException as error:
            keep = bool(staging.finished) and _resumable(error)
            if keep and isinstance(error, RegistryError):
                files = ", ".join(sorted(staging.finished))
                raise RegistryError(
                    error.code, error.detail, hint=f"{error.hint} Run it again to resume; finished files: {files}."
                ) from error
            raise
        staging.clear()
        _publish(folder, final)
    finally:
        os.close(lock)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _resumable(error: BaseException) -> bool:
    if isinstance(error, RegistryError):
        return error.code == "storage-unavailable"
    return isinstance(error, KeyboardInterrupt | OSError)


def _check_final(final: Path) -> None:
    if final.is_symlink() or (final.exists() and not (final.is_dir() and not any(final.iterdir()))):
        raise RegistryError("exists", f"{final} already exists.", hint="Choose a folder that does not exist yet.")
    final.parent.mkdir(parents=True, exist_ok=True)


def _check_space(final: Path, needed: int) -> None:
    free = shutil.disk_usage(final.parent).free
    if free < needed:
        raise no_space(str(final), needed - free)


def _locked(final: Path, key: str) -> tuple[Path, int]:
    """A folder beside `final`, created or found by its key, and the lock on it; with a random key if another process
    has the lock."""
    folder = final.parent / f".{final.name}.{key}.partial"
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            folder = final.parent / f".{final.name}.{secrets.token_hex(4)}.partial"
            continue
        if _is_same(folder, lock):
            return folder, lock
        os.close(lock)


def _is_same(folder: Path, lock: int) -> bool:
    """Whether the path still refers to the locked folder, which may have been removed or published in between."""
    try:
        return os.path.samestat(os.stat(folder, follow_symlinks=False), os.fstat(lock))
    except FileNotFoundError:
        return False


def _publish(folder: Path, final: Path) -> None:
    try:
        folder.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise RegistryError("exists", f"{final} was created by another process in the meantime.") from error


def _remove_leftovers(final: Path) -> None:
    """Remove folders that killed processes left beside `final`, whose locks ended with the process."""
    for folder in final.parent.glob(f".{glob.escape(final.name)}.*.partial"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _boot_id() -> str | None:
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None


class _Record(msgspec.Struct, Generic[_Notes], frozen=True):
    boot: str
    done: FinishedFile[_Notes]
