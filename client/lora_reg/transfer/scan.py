"""List a folder without opening anything but regular files, and without following links, except inside the cache of
huggingface_hub: there the files of a snapshot are links to the blobs of the same repository."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding
from lora_contract.manifest import MAX_FILES
from lora_reg.progress import SILENT, Progress
from lora_reg.transfer.hub_cache import blobs_of_cache, is_inside
from lora_reg.transfer.selection import Selection

CHUNK: Final = 1 << 20
_OPEN: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_ARCHIVES: Final = (".tar", ".tgz", ".tar.gz", ".zip", ".gz", ".xz", ".bz2", ".zst", ".7z", ".rar")

Reader = Callable[[str, int, int], bytes]


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A regular file. `path` is relative to the folder, with '/'. `stamp`: device, inode, size, time of change."""

    path: str
    location: Path
    size: int
    stamp: tuple[int, int, int, int]
    follow: bool

    def open(self) -> int:
        """Open the file. Raises RegistryError `digest-mismatch` if it has changed since the scan."""
        try:
            descriptor = os.open(self.location, _OPEN | (0 if self.follow else _NOFOLLOW))
        except OSError as error:
            raise _changed(self.path, error.strerror or "it cannot be opened") from error
        if _stamp(os.fstat(descriptor)) != self.stamp:
            os.close(descriptor)
            raise _changed(self.path, "it was written to or replaced")
        return descriptor

    def chunks(self, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield `length` bytes from `offset`; None: to its end. Raises RegistryError `digest-mismatch` if the file has
        changed since the scan."""
        end = self.size if length is None else offset + length
        with os.fdopen(self.open(), "rb", buffering=0) as file:
            file.seek(offset)
            while offset < end and (piece := file.read(min(CHUNK, end - offset))):
                offset += len(piece)
                yield piece


@dataclass(frozen=True, slots=True)
class Scan:
    """The files of a folder, sorted by path. findings: on other entries. left_out: never opened; folders end in '/'."""

    folder: Path
    files: tuple[LocalFile, ...]
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...]

    def without(self, paths: Set[str]) -> Scan:
        """The scan with these files left out."""
        kept = tuple(file for file in self.files if file.path not in paths)
        return replace(self, files=kept, left_out=tuple(sorted({*self.left_out, *paths})))

    def reader(self) -> Reader:
        """A function `read(path, offset, length)` for the checks; returns exactly that many bytes or raises."""
        table = {file.path: file for file in self.files}

        def read(path: str, offset: int, length: int) -> bytes:
            if length == 0:
                return b""
            descriptor = table[path].open()
            try:
                return _read_exactly(descriptor, path, offset, length)
            finally:
                os.close(descriptor)

        return read

    def hash(self, progress: Progress = SILENT) -> dict[str, Digest]:
        """The digest of every file by path. Each file is read once, in constant memory."""

        def digest(file: LocalFile) -> tuple[str, Digest]:
            state = hashlib.sha256()
            for piece in file.chunks():
                state.update(piece)
                progress.advance(len(piece))
            return file.path, Digest(state.hexdigest())

        progress.begin("Hashing", sum(file.size for file in self.files))
        try:
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                return dict(pool.map(digest, self.files))
        finally:
            progress.end()


def scan_file(location: Path, path: str) -> Scan:
    """Scan one file, which is `path` in the version. Raises RegistryError `usage` if it is not a regular file."""
    try:
        status = location.stat()
    except OSError as error:
        raise RegistryError("usage", f"{location}: {error.strerror}.", hint="Name a file.") from error
    if not stat.S_ISREG(status.st_mode):
        raise RegistryError("usage", f"{location} is {_kind(status.st_mode, False)}.", hint="Name a file.")
    file = LocalFile(path, location, status.st_size, _stamp(status), follow=True)
    return Scan(location.parent, (file,), (), ())


def scan_folder(folder: Path, *, select: Selection | None = None, follow_links: bool = False) -> Scan:
    """List a folder.

    Raises RegistryError `usage` if it does not exist, `rejected` if it is not a folder.

    Args:
        select: what is left out; None: housekeeping alone.
        follow_links: treat all links to regular files as files; otherwise only those inside a cache of
            huggingface_hub.
    """
    root = _require_folder(folder)
    select = select or Selection(root)
    blobs = None if follow_links else blobs_of_cache(root)
    files: list[LocalFile] = []
    findings: list[Finding] = []
    left_out: list[str] = []
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(root / prefix) as entries:
            for entry in sorted(entries, key=lambda item: item.name):
                path = prefix + entry.name
                inner = entry.is_dir(follow_symlinks=False)
                if not _decodes(entry.name):
                    findings.append(_finding(ascii(path), "has a name that is not UTF-8", "bad-path"))
                elif select.leaves_out(path, folder=inner, link=entry.is_symlink()):
                    left_out.append(path + "/" * inner)
                elif inner:
                    waiting.append(path + "/")
                else:
                    _place(entry, path, follow_links or is_inside(entry.path, blobs), files, findings)
        if len(files) + len(findings) > MAX_FILES:
            findings.append(
                Finding(
                    code="too-many-files",
                    severity="error",
                    message=f"There are more than {MAX_FILES} files.",
                    found=str(len(files)),
                )
            )
            break
    if not files and not findings and not left_out:
        findings.append(Finding(code="empty-folder", severity="error", message=f"{folder} is an empty folder."))
    files.sort(key=lambda file: file.path)
    return Scan(root, tuple(files), tuple(findings), tuple(sorted(left_out)))


def _place(entry: os.DirEntry[str], path: str, follow: bool, files: list[LocalFile], findings: list[Finding]) -> None:
    status = entry.stat(follow_symlinks=False)
    linked = stat.S_ISLNK(status.st_mode)
    if linked and follow:
        try:
            status = entry.stat()
        except OSError:
            findings.append(_finding(path, "is a broken link", "link"))
            return
    if stat.S_ISREG(status.st_mode):
        files.append(LocalFile(path, Path(entry.path), status.st_size, _stamp(status), linked))
    else:
        findings.append(_finding(path, f"is {_kind(status.st_mode, linked)}", "link" if linked else "not-a-file"))


def _require_folder(folder: Path) -> Path:
    if not os.path.lexists(folder):
        raise RegistryError(
            "usage", f"There is no folder {str(folder)!r}.", hint="Name the folder of the adapter or base."
        )
    if folder.is_dir():
        return folder.resolve()
    kind = "an archive" if folder.name.lower().endswith(_ARCHIVES) else _kind(folder.lstat().st_mode, False)
    message = f"{folder} is {kind}, and a folder is expected: archives are never unpacked."
    hint = "Unpack it, review its files, and name the folder."
    finding = Finding(
        code="not-a-folder", severity="error", message=message, found=kind, expected="a folder", hint=hint
    )
    raise RegistryError(
        "rejected", message, hint=hint, findings=[{"code": finding.code, "severity": "error", "message": message}]
    )


def _read_exactly(descriptor: int, path: str, offset: int, length: int) -> bytes:
    data = os.pread(descriptor, length, offset)
    if len(data) == length:
        return data
    parts = [data]
    missing = length - len(data)
    while missing:
        piece = os.pread(descriptor, missing, offset + length - missing)
        if not piece:
            raise _changed(path, f"it ends {missing} bytes before byte {offset + length}")
        parts.append(piece)
        missing -= len(piece)
    return b"".join(parts)


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    regular = stat.S_ISREG(status.st_mode)
    return status.st_dev, status.st_ino if regular else -1, status.st_size, status.st_mtime_ns


def _decodes(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(mode: int, linked: bool) -> str:
    if linked or stat.S_ISLNK(mode):
        return "a symbolic link"
    for test, name in ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISREG, "a file")):
        if test(mode):
            return name
    return "a folder" if stat.S_ISDIR(mode) else "a device"


def _finding(path: str, what: str, code: str) -> Finding:
    return Finding(
        code=code,
        severity="error",
        message=f"{path} {what}; only regular files are pushed.",
        file=path,
        found=what,
        expected="a regular file",
        hint="Replace it with the file itself, or remove it.",
    )


def _changed(path: str, how: str) -> RegistryError:
    return RegistryError(
        "digest-mismatch",
        f"{path} changed while it was read: {how}.",
        hint="Push again when no process writes to the folder.",
    )
