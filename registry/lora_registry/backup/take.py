"""Take a backup, and read one back.

The database comes first, then the blobs that the store lists after that moment: blobs are immutable and are recorded
only once they are stored, so every blob that the copy of the database names is in the later list. The other order loses
what was pushed between.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import msgspec

from lora_contract import __version__
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.backup import copying, place, snapshot
from lora_registry.backup.copying import Tell
from lora_registry.backup.document import (
    BLOBS,
    DATABASE,
    DOCUMENT,
    Document,
    Item,
    Part,
    from_lines,
    name_of,
    new_id,
    to_lines,
)
from lora_registry.backup.holding import collections_held
from lora_registry.backup.place import Place
from lora_registry.context import Context
from lora_registry.keeping import damage
from lora_registry.runtime.clock import iso
from lora_registry.runtime.faults import fault_point

_UNFINISHED: Final = 24 * 3600.0
_NAMED: Final = 1000
"""Incomplete blobs that the document names."""


def take(ctx: Context, target: Place, *, parallel: int, tell: Tell) -> Document:
    """Take a backup; blobs that are there already are not copied again.

    Blobs that versions need, and that the store lost or damaged, are named in the document and marked in the database.
    """
    scratch = target.scratch or ctx.settings.data
    place.remove_unfinished(target, older_than=_UNFINISHED)
    target.blobs.sweep(older_than=_UNFINISHED)
    backup_id = new_id()
    with collections_held(ctx.db.engine), spool(scratch) as needed, spool(scratch) as listed:
        with snapshot.take(ctx.db.engine, scratch) as taken:
            at, event, revision, kind = taken.at, taken.event, taken.revision, taken.kind
            fill(needed, snapshot.needed(taken.session))
            fault_point("backup.database")
            database = target.write(place.path(backup_id, DATABASE), taken.dump())
        tell(f"database: {database.size} bytes, as of event {event}")
        fault_point("backup.blobs")
        fill(listed, ctx.blobs.list())
        absent = copying.missing(items(listed), target.blobs.list())
        copied = copying.copy(absent, ctx.blobs, target.blobs, parallel=parallel, failed=_marker(ctx), tell=tell)
        tell(f"blobs: {copied.blobs} copied, {copied.bytes} bytes")
        incomplete = [name_of(where) for where, _ in copying.missing(items(needed), target.blobs.list())]
        count = copying.Count()
        present = copying.split(copying.union(items(needed), items(listed)), target.blobs.list())
        blobs = target.write(
            place.path(backup_id, BLOBS), to_lines(_counted((item for item, there in present if there), count))
        )
    document = Document(
        id=backup_id,
        at=iso(at),
        event=event,
        kind=kind,
        revision=revision,
        software=__version__,
        database=Part.of(database),
        blobs=Part.of(blobs),
        blob_count=count.blobs,
        blob_bytes=count.bytes,
        incomplete=incomplete[:_NAMED],
    )
    fault_point("backup.document")
    target.write(place.path(backup_id, DOCUMENT), [msgspec.json.format(msgspec.json.encode(document)) + b"\n"])
    return document


def verify(source: Place, backup_id: str | None, *, parallel: int, tell: Tell) -> tuple[Document, dict[str, str]]:
    """Read a backup back; None: the newest. Returns what is missing or damaged in it, with the reason."""
    document = place.load(source, backup_id)
    problems = dict.fromkeys(document.incomplete, "The store had lost or damaged it when the backup was taken.")
    try:
        for _ in place.read_part(source, document.id, DATABASE, document.database):
            pass
    except RegistryError as error:
        problems[DATABASE] = error.detail
    listed = blobs_of(source, document)
    try:
        copying.verify(
            listed,
            source.blobs,
            parallel=parallel,
            failed=lambda where, error: problems.update({name_of(where): error.detail}),
            tell=tell,
        )
    except RegistryError as error:
        if error.code not in copying.WRONG:
            raise
        problems[BLOBS] = error.detail
    return document, problems


def blobs_of(source: Place, document: Document) -> Iterator[Item]:
    """The blobs of a backup, sorted. Raises RegistryError `digest-mismatch` at the end if the list is damaged."""
    return from_lines(place.lines(place.read_part(source, document.id, BLOBS, document.blobs)))


@contextmanager
def spool(folder: Path) -> Iterator[IO[bytes]]:
    """A temporary file for a list of blobs, which may be longer than memory. It has no name."""
    with tempfile.TemporaryFile(dir=folder) as file:
        yield file


def fill(file: IO[bytes], found: Iterable[Item]) -> None:
    for line in to_lines(found):
        file.write(line)
    file.flush()


def items(file: IO[bytes]) -> Iterator[Item]:
    """Read a spooled list from its start. One reader at a time."""
    file.seek(0)
    return from_lines(file)


def _counted(found: Iterable[Item], count: copying.Count) -> Iterator[Item]:
    for where, size in found:
        count.add(size)
        yield where, size


def _marker(ctx: Context) -> copying.Failed:
    def mark(where: Digest, error: RegistryError) -> None:
        damage.mark(ctx, where, "missing" if error.code == "not-found" else "damaged")

    return mark
