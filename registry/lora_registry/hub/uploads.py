"""Bytes that Hub clients send before they commit them: by the LFS protocol, or inside the commit itself.

An LFS client sends the bytes without its token, to URLs that it was given. So a URL of ours holds a secret, of which
only the hash is stored, and which is good for the blobs of one batch until they expire.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

from sqlmodel import Session

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import MAX_FILES
from lora_contract.roles import Grant
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.auth.tokens import hash_of
from lora_registry.context import Context
from lora_registry.db.dialect import database_now
from lora_registry.db.tables import UploadFile
from lora_registry.hub import store
from lora_registry.keeping import store as kept
from lora_registry.push import parts, sessions
from lora_registry.push import store as upload_rows
from lora_registry.push.reception import Reception
from lora_registry.repositories import store as version_store
from lora_registry.repositories import usage
from lora_registry.repositories.paths import RepositoryPath

Json = dict[str, Any]

URL_SECONDS: Final = 6 * 3600
"""Lifetime of a URL to send to: a client gets those of a whole folder at once."""
MAX_OBJECTS: Final = 1000
_SHA256: Final = ("sha256", "sha_256")
"""The second is what JavaScript clients write."""


def open_session(
    caller: Caller, path: RepositoryPath, sizes: Mapping[str, int], *, secret: str | None = None
) -> tuple[str, set[str]]:
    """Open an upload session of Hub clients for these digests. Return its id, and the digests that need not be sent.

    Raises `too-large`, `quota`.
    """
    with caller.ctx.db.write() as session:
        at = database_now(session)
        upload_id = upload_rows.add(
            session,
            path,
            store.UPLOAD_KIND,
            caller.principal.name,
            at=at,
            seconds=caller.ctx.settings.upload_seconds,
            capability=None if secret is None else hash_of(secret),
        )
        present = _announce(session, caller, path, upload_id, sizes, at)
    return upload_id, present


def announce(caller: Caller, path: RepositoryPath, upload_id: str, digest: Digest, size: int) -> bool:
    """Add a blob to a session. Return False if its bytes need not be sent."""
    with caller.ctx.db.write() as session:
        if upload_rows.file(session, upload_id, str(digest)) is not None:
            return False
        return not _announce(session, caller, path, upload_id, {str(digest): size}, database_now(session))


def _announce(
    session: Session, caller: Caller, path: RepositoryPath, upload_id: str, sizes: Mapping[str, int], at: int
) -> set[str]:
    limit, principal = caller.ctx.settings.max_file_bytes, caller.principal
    for digest, size in sizes.items():
        if not 0 <= size <= limit:
            raise RegistryError("too-large", f"{digest[:19]} has {size} bytes; the limit is {limit}.")
    visible = principal.visible()
    known = {digest for digest in sizes if version_store.readable_blob(session, digest, visible) is not None}
    known |= {file.digest for file in store.uploads(session, path, principal.name, at) if file.stored}
    known |= {file.digest for file in store.staged(session, path, at) if file.digest is not None}
    found = kept.rescue(session, known & set(sizes))
    present = {digest for digest, row in found.items() if row.size == sizes[digest]}
    if missing := [size for digest, size in sizes.items() if digest not in present]:
        usage.check(session, path.namespace, size=sum(missing) + store.staged_bytes(session, path.namespace, at))
    for digest, size in sorted(sizes.items()):
        session.add(UploadFile(session_id=upload_id, digest=digest, size=size, stored=digest in present))
    session.flush()
    return present


def batch(caller: Caller, path: RepositoryPath, request: Json, *, own_url: str, repo_url: str) -> Json:
    """Answer an LFS batch request (https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md).

    own_url: of the Hub dialect. repo_url: of the repository.
    """
    sizes = _objects(request)
    secret = secrets.token_urlsafe(32)
    upload_id, present = open_session(caller, path, sizes, secret=secret)
    transfers = request.get("transfers")
    in_parts = isinstance(transfers, list) and "multipart" in transfers
    objects: list[Json] = []
    used = "basic"
    for text, size in sizes.items():
        digest = Digest.parse(text)
        item: Json = {"oid": digest.hex, "size": size, "authenticated": True}
        if text not in present:
            step = parts.part_size(caller.ctx.settings, size) if in_parts else None
            here = f"{own_url}/api/lfs/{secret}/{digest.hex}"
            if step is None:
                upload = {"href": _target(caller.ctx, upload_id, digest, None, size) or here, "header": {}}
            else:
                used = "multipart"
                count = -(-size // step)
                header = {"chunk_size": str(step)}
                for number in range(1, count + 1):
                    length = min(step, size - (number - 1) * step)
                    url = _target(caller.ctx, upload_id, digest, number, length) or f"{here}/{number}"
                    header[f"{number:05}"] = url
                upload = {"href": here, "header": header}
            item["actions"] = {"upload": upload, "verify": {"href": f"{repo_url}/info/lfs/verify", "header": {}}}
        objects.append(item)
    return {"transfer": used, "objects": objects}


def _objects(request: Json) -> dict[str, int]:
    """Return sizes by digest. Raises `invalid-request`, `unsupported`."""
    if request.get("operation") != "upload" or request.get("hash_algo", "sha256") not in _SHA256:
        raise RegistryError("invalid-request", "Only uploads of files named by their sha256 are possible here.")
    objects = request.get("objects")
    if not isinstance(objects, list) or not 0 < len(objects) <= MAX_OBJECTS:
        raise RegistryError("invalid-request", f"A batch names 1 to {MAX_OBJECTS} objects.")
    sizes: dict[str, int] = {}
    for item in objects:
        oid, size = (item.get("oid"), item.get("size")) if isinstance(item, dict) else (None, None)
        if not isinstance(oid, str) or not isinstance(size, int) or isinstance(size, bool):
            raise RegistryError("invalid-request", "An object of the batch has no oid and size.")
        digest = str(Digest.parse(f"sha256:{oid}"))
        if sizes.setdefault(digest, size) != size:
            raise RegistryError("invalid-request", f"{digest[:19]} is named with two sizes.")
    return sizes


def _target(ctx: Context, upload_id: str, digest: Digest, number: int | None, size: int) -> str | None:
    if not ctx.settings.presign:
        return None
    seconds = min(URL_SECONDS, ctx.settings.upload_seconds)
    presigned = ctx.blobs.presign_plain(upload_id, digest, number, size=size, expires_in=seconds)
    return None if presigned is None else presigned.url


def sender(ctx: Context, secret: str) -> tuple[Caller, str]:
    """Return the caller that a secret URL was given to, as a writer of its namespace alone, and the upload session.

    Raises `not-found`.
    """
    with ctx.db.read() as session:
        row = store.by_capability(session, hash_of(secret), database_now(session))
    if row is None:
        raise RegistryError("not-found", "This URL to send a file to is not valid, or has expired.", hint="Push again.")
    return Caller(ctx, Principal(row.author, (Grant(row.namespace, "writer"),))), row.id


def receive(caller: Caller, upload_id: str, digest: Digest, number: int | None) -> Reception:
    """Receive a blob's bytes, or those of a part."""
    if number is None:
        return sessions.receive(caller, upload_id, digest)
    return parts.receive(caller, upload_id, digest, number)


def complete(caller: Caller, upload_id: str, digest: Digest) -> None:
    """Check what the store received for a digest. After a while it goes on without the caller."""
    sessions.complete(caller, upload_id, digest)


def verify(caller: Caller, path: RepositoryPath, digest: Digest, size: int) -> None:
    """Check that what was announced for a repository was sent. Raises `not-found`, `digest-mismatch`."""
    with caller.ctx.db.read() as session:
        found = _announced(session, caller, path, str(digest))
    if found is None or found.size != size:
        raise RegistryError("not-found", f"{digest.short} was not announced with {size} bytes.", hint="Push again.")
    if not found.stored:
        complete(caller, found.session_id, digest)


def require_stored(caller: Caller, path: RepositoryPath, digest: Digest) -> None:
    """Wait until a file that the client sent is checked. Raises `rejected` if it never was sent."""
    with caller.ctx.db.read() as session:
        found = _announced(session, caller, path, str(digest))
    if found is None or found.stored:
        return
    try:
        while not sessions.complete(caller, found.session_id, digest):
            pass
    except RegistryError as error:
        if error.code != "not-found":
            raise
        raise RegistryError(
            "rejected", f"{digest.short} was not uploaded.", hint="Send its bytes, then commit."
        ) from error


def _announced(session: Session, caller: Caller, path: RepositoryPath, digest: str) -> UploadFile | None:
    """Return the newest announcement of a digest by the caller, one whose bytes are stored first."""
    rows = store.uploads(session, path, caller.principal.name, database_now(session))
    found = [row for row in rows if row.digest == digest]
    return next((row for row in found if row.stored), found[-1] if found else None)


def gather(caller: Caller, path: RepositoryPath, sizes: Mapping[str, int]) -> str:
    """Open a session that holds all these digests as stored, for one commit. Raises `rejected` if one is not."""
    if len(sizes) > MAX_FILES:
        raise RegistryError("rejected", f"A version has at most {MAX_FILES} files, not {len(sizes)}.")
    upload_id, present = open_session(caller, path, sizes)
    for digest in sizes:
        if digest not in present:
            discard(caller.ctx, upload_id)
            raise RegistryError("rejected", f"{digest[:19]} was not uploaded.", hint="Send its bytes, then commit.")
    return upload_id


def discard(ctx: Context, upload_id: str) -> None:
    """Forget a session; its blobs stay if something else needs them."""
    with ctx.db.write() as session:
        upload_rows.remove(session, upload_id)
