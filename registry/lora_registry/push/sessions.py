"""Upload sessions: announce files, send the missing ones, then commit (in `push.commit`).

A caller learns that a blob is already stored only if a repository that they may read has it. Otherwise the bytes are
requested again, so that no response reveals what another namespace has.
"""

from __future__ import annotations

from typing import Final

from lora_contract import reference
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import MAX_FILES, FileEntry
from lora_contract.wire.uploads import UploadRequest, UploadSession, UploadTarget
from lora_registry.auth.caller import Caller
from lora_registry.blobs import protocols
from lora_registry.context import Context
from lora_registry.db.dialect import database_now
from lora_registry.db.tables import UploadFile
from lora_registry.keeping import damage, reading
from lora_registry.keeping import store as kept
from lora_registry.keeping.reading import Content
from lora_registry.push import background, store
from lora_registry.push.announced import require_announced, require_own
from lora_registry.push.parts import part_size
from lora_registry.push.reception import Reception
from lora_registry.repositories import store as version_store
from lora_registry.repositories import usage
from lora_registry.repositories.insert import check_target
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.clock import iso
from lora_registry.runtime.faults import fault_point

COMPLETE_SECONDS: Final = 10.0
"""A request waits so long for the check of a blob: less than proxies wait for an answer."""


def open_session(caller: Caller, request: UploadRequest) -> UploadSession:
    """Open a session for these files. A push of long files that was cut off finds its session again.

    Raises `forbidden`, `deleted`, `conflict` (a repository of another kind), `too-large`, `rejected`.
    """
    path = RepositoryPath(request.namespace, request.name)
    reference.check_namespace(path.namespace)
    reference.check_name(path.name)
    caller.require("writer", path.namespace)
    entries = [FileEntry(file.path, file.size, Digest.parse(file.digest)) for file in request.files]
    if not 0 < len(entries) <= MAX_FILES:
        raise RegistryError("rejected", f"An upload must announce 1 to {MAX_FILES} files, not {len(entries)}.")
    sizes: dict[str, int] = {}
    for entry in entries:
        if entry.size > caller.ctx.settings.max_file_bytes:
            raise RegistryError(
                "too-large", f"{entry.path} has {entry.size} bytes; the limit is {caller.ctx.settings.max_file_bytes}."
            )
        if sizes.setdefault(str(entry.digest), entry.size) != entry.size:
            raise RegistryError("invalid-request", f"{entry.digest.short} is announced with two sizes.")
    if any(part_size(caller.ctx.settings, size) for size in sizes.values()):
        with caller.ctx.db.read() as session:
            unfinished = store.unfinished(
                session, (path.namespace, path.name, request.kind), caller.principal.name, sizes, database_now(session)
            )
        if unfinished is not None:
            return show(caller, unfinished)
    with caller.ctx.db.write() as session:
        check_target(version_store.repository(session, path), path, request.kind)
        upload_id = store.add(
            session,
            path,
            request.kind,
            caller.principal.name,
            at=database_now(session),
            seconds=caller.ctx.settings.upload_seconds,
        )
        visible = caller.principal.visible()
        readable = [d for d, size in sizes.items() if version_store.readable_blob(session, d, visible) == size]
        # What the client need not send is kept for the session: no collector takes what its rows name.
        present = kept.rescue(session, readable)
        if missing := [size for digest, size in sizes.items() if digest not in present]:
            usage.check(session, path.namespace, size=sum(missing))
        for digest, size in sorted(sizes.items()):
            session.add(UploadFile(session_id=upload_id, digest=digest, size=size, stored=digest in present))
        fault_point("upload.announced")
    for digest, blob in present.items():
        _require_stored(caller.ctx, upload_id, Content.of(blob, digest))
    return show(caller, upload_id)


def _require_stored(ctx: Context, upload_id: str, content: Content) -> None:
    """Have the client send a blob whose object is missing or has another length."""
    try:
        reading.require_present(ctx, content)
    except RegistryError as error:
        if error.code != "corrupt":
            raise
        with ctx.db.write() as session:
            store.mark_stored(session, upload_id, str(content.where), stored=False)


def show(caller: Caller, upload_id: str) -> UploadSession:
    """Show the blobs that are still needed, with fresh presigned requests if the store supports them."""
    with caller.ctx.db.read() as session:
        row = require_own(session, caller.principal, upload_id)
        files = store.files(session, upload_id)
    return UploadSession(
        id=row.id, expires_at=iso(row.expires_at), blobs=[_target(caller.ctx, row.id, file) for file in files]
    )


def receive(caller: Caller, upload_id: str, digest: Digest) -> Reception:
    """Receive a blob's bytes. Raises `digest-mismatch`, `size-mismatch`, `not-found` on the way; nothing is stored
    then."""
    where: Digest = digest
    size = 0

    def begin() -> protocols.Reception:
        nonlocal where, size
        expected, where = require_announced(caller, upload_id, digest)
        size = expected.size
        return caller.ctx.blobs.receive(digest=where, size=size)

    def accept() -> None:
        fault_point("upload.stored")
        _record(caller, upload_id, where, size)

    return Reception(begin, accept)


def complete(caller: Caller, upload_id: str, digest: Digest) -> bool:
    """Check the bytes that the store received by a presigned PUT or in parts, and accept them. The client is not
    trusted. Return False if the check goes on: ask again."""
    expected, where = require_announced(caller, upload_id, digest)
    if expected.stored:
        return True

    def adopt() -> None:
        caller.ctx.blobs.adopt(upload_id, digest=where, size=expected.size)
        fault_point("upload.adopted")
        _record(caller, upload_id, where, expected.size)

    return background.finished((upload_id, str(digest)), adopt, seconds=COMPLETE_SECONDS)


def abandon(caller: Caller, upload_id: str) -> None:
    with caller.ctx.db.read() as session:
        require_own(session, caller.principal, upload_id)
    caller.ctx.blobs.discard_upload(upload_id)
    with caller.ctx.db.write() as session:
        store.remove(session, upload_id)


def sweep(ctx: Context) -> int:
    """Remove expired sessions and their leftovers in the store. Return their number."""
    removed = 0
    while True:
        with ctx.db.read() as session:
            ids = store.expired(session, database_now(session))
        for upload_id in ids:
            ctx.blobs.discard_upload(upload_id)
            with ctx.db.write() as session:
                store.remove(session, upload_id)
        removed += len(ids)
        if not ids:
            return removed


def _record(caller: Caller, upload_id: str, where: Digest, size: int) -> None:
    digest = str(where)
    with caller.ctx.db.write() as session:
        # A session that expired meanwhile no longer keeps the blob from a collector.
        require_own(session, caller.principal, upload_id)
        before = kept.blob(session, digest)
        repaired = before is not None and before.state in ("damaged", "missing")
        kept.record(session, {where: size})
        store.mark_stored(session, upload_id, digest)
        if repaired:
            damage.tell(session, digest, "ok")
    fault_point("upload.recorded")


def _target(ctx: Context, upload_id: str, file: UploadFile) -> UploadTarget:
    if file.stored:
        return UploadTarget(digest=file.digest, size=file.size, state="present")
    presigned = None
    step = part_size(ctx.settings, file.size)
    if ctx.settings.presign:
        presigned = ctx.blobs.presign_put(
            upload_id, Digest.parse(file.digest), size=file.size, expires_in=ctx.settings.presign_seconds
        )
    if presigned is None:
        return UploadTarget(digest=file.digest, size=file.size, state="needed", part_size=step)
    return UploadTarget(
        digest=file.digest,
        size=file.size,
        state="needed",
        method=presigned.method,
        url=presigned.url,
        headers=presigned.headers,
        part_size=step,
    )
