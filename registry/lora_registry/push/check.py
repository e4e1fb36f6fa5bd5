"""Check uploaded files: small ones here, larger ones in a child process with limits, so that none stalls or fattens the
service."""

from __future__ import annotations

import struct
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlmodel import Session

from lora_contract.adapter.report import WEIGHTS
from lora_contract.errors import RegistryError
from lora_contract.manifest import FileEntry
from lora_contract.wire.repositories import CommitRequest
from lora_registry.bases import store as base_store
from lora_registry.context import Context
from lora_registry.db.tables import Version
from lora_registry.keeping.reading import Content, contents
from lora_registry.processes.confinement import Confinement
from lora_registry.push import content
from lora_registry.push.content import CheckInput, ContentCheck, PlacedFile
from lora_registry.repositories import store
from lora_registry.runtime.typed import decode, encode, target_of

INLINE: Final = 1024 * 1024
"""JSON and headers, in bytes, up to which files are checked in this process. To fork a child takes 20 ms."""
WEIGHTS_END: Final = ".safetensors"

MEMORY: Final = 1 << 30
SECONDS: Final = 60
"""Processor time of a check, and a second more for each SECOND_BYTES of weights, whose values are read."""
SECOND_BYTES: Final = 64 * 1024 * 1024

_FROM_OUTSIDE: Final = ("SIGKILL", "SIGTERM")
"""Signals that the limits of a check do not send: the machine ran out of memory, or somebody ended the process."""

_SLOTS: Final = threading.BoundedSemaphore(4)
_WAIT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class PinnedBase:
    """The base against which an adapter is checked. name: of its repository. names: its own name and its aliases.
    files: those stored."""

    version: Version
    fingerprint: bytes
    name: str
    names: Collection[str]
    files: Mapping[str, Content]
    used: set[str] = field(default_factory=set)
    """Paths of the files that a check has read."""

    def contents_read(self) -> list[Content]:
        return [self.files[path] for path in sorted(self.used)]


class _Silent:
    """Checks report nothing on their way."""

    def progress(self, record: dict[str, Any]) -> None: ...

    def log(self, text: str) -> None: ...

    def alive(self) -> None: ...


def by_kind(ctx: Context, request: CommitRequest, files: tuple[FileEntry, ...], pin: PinnedBase | None) -> ContentCheck:
    """Check uploaded files by the kind that the request names. Raises RegistryError for an inconsistent request."""
    if request.kind == "adapter":
        assert pin is not None
        return adapter(ctx, files, pin, accept_base=request.accept_base)
    return _run(
        ctx,
        CheckInput(
            request.kind, _placed(files), weights_absent=request.weights_absent, fingerprint=request.fingerprint
        ),
    )


def adapter(ctx: Context, files: tuple[FileEntry, ...], pin: PinnedBase, *, accept_base: bool) -> ContentCheck:
    """Check an adapter whose files are stored. accept_base: accept a config that names another base."""
    absent = pin.version.weights_absent
    found = _run(
        ctx,
        CheckInput(
            "adapter",
            _placed(files),
            accept_base=accept_base,
            base_names=tuple(pin.names),
            base_name=pin.name,
            base_fingerprint=pin.fingerprint.decode(),
            base_files=None
            if absent
            else tuple(PlacedFile.of(path, file.size, file.where) for path, file in pin.files.items()),
        ),
    )
    pin.used.update(found.base_read)
    return found


def base(ctx: Context, files: tuple[FileEntry, ...]) -> ContentCheck:
    """Check a base whose files are stored."""
    return _run(ctx, CheckInput("base", _placed(files)))


def load_base(session: Session, version: Version) -> PinnedBase:
    """Load the base version against which adapters are checked. Raises `conflict`, `corrupt`."""
    repo = store.repositories_by_id(session, [version.repository_id])[version.repository_id]
    if repo.kind != "base":
        raise RegistryError("conflict", f"{repo.label} is of kind {repo.kind}, not base.")
    row = base_store.fingerprint(session, version.id)
    if row is None:
        raise RegistryError("corrupt", f"The fingerprint of {repo.label}:v{version.number} is missing.")
    names = {*base_store.aliases(session, repo.id), repo.name, repo.label}
    if version.base_version_id is not None:  # a resized base: trainers resize in memory, and name the one they loaded
        origin = store.versions_by_id(session, [version.base_version_id])[version.base_version_id]
        owner = store.repositories_by_id(session, [origin.repository_id])[origin.repository_id]
        names |= {*base_store.aliases(session, owner.id), owner.name, owner.label}
    return PinnedBase(version, row.body, repo.label, frozenset(names), contents(session, [version.id])[version.id])


def _placed(files: tuple[FileEntry, ...]) -> tuple[PlacedFile, ...]:
    return tuple(PlacedFile.of(entry.path, entry.size, entry.digest) for entry in files)


def _run(ctx: Context, data: CheckInput) -> ContentCheck:
    if not _needs_child(ctx, data):
        return content.check_content(data, ctx.blobs)
    if not _SLOTS.acquire(timeout=_WAIT_SECONDS):
        raise RegistryError("unavailable", "Too many pushes are checked at the same time.", hint="Push again.")
    weights = sum(file.size for file in data.files if file.path.endswith(WEIGHTS_END) and data.kind == "adapter")
    seconds = SECONDS + weights // SECOND_BYTES
    limits = Confinement(files=True, memory=MEMORY, seconds=seconds, alone=True)
    try:
        found = ctx.checks.run(
            name="check",
            target=target_of(content.check),
            spec=encode(data),
            sink=_Silent(),
            timeout=60.0 + 4 * seconds,
            confinement=limits,
        )
    except RegistryError as error:
        if error.code != "job-failed":
            raise
        if error.facts.get("reason") == "timeout" or error.facts.get("signal") in _FROM_OUTSIDE:
            raise RegistryError(
                "unavailable", "The check of the files was interrupted.", hint="Push again; what was sent is kept."
            ) from error
        raise RegistryError(
            "rejected",
            f"The files cannot be checked within {MEMORY >> 20} MiB of memory and {seconds} seconds of processor time.",
        ) from error
    finally:
        _SLOTS.release()
    result: ContentCheck = decode(found, ContentCheck)
    return result


def _needs_child(ctx: Context, data: CheckInput) -> bool:
    """Whether more than a little is parsed. Datasets are read line by line."""
    if data.kind == "dataset":
        return False
    parsed = len(data.base_fingerprint) + sum(file.size for file in data.files if file.path.endswith(".json"))
    for file in data.files:
        if parsed > INLINE:
            return True
        if file.path == WEIGHTS or (
            data.kind in ("base", "model") and file.path.endswith(WEIGHTS_END) and not data.weights_absent
        ):
            parsed += file.size if file.size <= INLINE else _header_length(ctx, file)
    return parsed > INLINE


def _header_length(ctx: Context, file: PlacedFile) -> int:
    (length,) = struct.unpack("<Q", ctx.blobs.read(file.where, 0, 8))
    return min(int(length), file.size)
