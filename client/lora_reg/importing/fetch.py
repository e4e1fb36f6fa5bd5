"""Fetch files of a source into a folder. What was received of a file is kept, and the rest is asked for."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Final

import httpx2

from lora_contract.errors import RegistryError
from lora_reg.disk import check_space
from lora_reg.importing.items import Opener, SourceFile
from lora_reg.progress import Progress

ATTEMPTS: Final = 5
"""In a row without a byte received."""
_CHUNK: Final = 1 << 20
_UNSTATED: Final = 16 << 30
"""Bytes of a file whose size its source does not state."""


def fetch(opener: Opener, file: SourceFile, target: Path, progress: Progress) -> None:
    """Fetch a file to `target`, which appears whole; its beginning waits under another name.

    Raises RegistryError `unavailable` if the connection breaks again and again, `digest-mismatch`, `size-mismatch`.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    have = part.stat().st_size if part.exists() else 0
    if file.size is not None:
        check_space(target.parent, max(0, file.size - have))
    progress.advance(have)
    failures = 0
    while not _complete(part, file):
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(opener, part, before, _UNSTATED if file.size is None else file.size, progress)
            if file.size is None:
                break
        except httpx2.RequestError as error:
            grown = part.exists() and part.stat().st_size > before
            failures = 0 if grown else failures + 1
            if failures >= ATTEMPTS:
                raise RegistryError(
                    "unavailable",
                    f"The connection broke while {file.path} was fetched: {type(error).__name__}.",
                    hint="Run the same command again: it resumes where it stopped.",
                ) from error
            time.sleep(0.2 * 2**failures)
        else:
            if part.stat().st_size <= before:
                break
    _verify(part, file)
    part.replace(target)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as hex digits."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            state.update(piece)
    return state.hexdigest()


def _complete(part: Path, file: SourceFile) -> bool:
    return part.exists() and file.size is not None and part.stat().st_size >= file.size


def _receive(opener: Opener, part: Path, have: int, limit: int, progress: Progress) -> None:
    with opener(have) as (offset, chunks), part.open("r+b" if part.exists() else "xb") as stream:
        if offset > have:
            raise RegistryError("size-mismatch", f"{part.stem} was asked for from byte {have} and came from {offset}.")
        stream.truncate(offset)
        stream.seek(offset)
        progress.advance(offset - have)
        for chunk in chunks:
            stream.write(chunk)
            progress.advance(len(chunk))
            if stream.tell() > limit:
                return  # the size is compared afterwards


def _verify(part: Path, file: SourceFile) -> None:
    size = part.stat().st_size
    if (file.size is not None and size != file.size) or (file.size is None and size > _UNSTATED):
        part.unlink()
        stated = f"the source states {file.size}" if file.size is not None else f"expected at most {_UNSTATED}"
        raise RegistryError("size-mismatch", f"{file.path} came with {size} bytes; {stated}.", hint="Try again.")
    if file.sha256 is not None and (found := sha256_of(part)) != file.sha256:
        part.unlink()
        raise RegistryError(
            "digest-mismatch",
            f"{file.path} came with the sha256 {found[:12]}…; the source states {file.sha256[:12]}….",
            hint="Try again; if it persists, the file is damaged at its source.",
        )
