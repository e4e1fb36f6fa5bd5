"""Commit an upload session as a version: check what was stored, then insert it in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from sqlmodel import Session

from lora_contract import reference
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding, refuse
from lora_contract.manifest import FileEntry, Manifest
from lora_contract.wire.repositories import CommitRequest, CommitResult
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.bases import service as bases
from lora_registry.bases import weights
from lora_registry.context import Context
from lora_registry.db.dialect import database_now
from lora_registry.jobs import enqueue
from lora_registry.keeping import reading
from lora_registry.keeping import store as kept
from lora_registry.keeping.reading import Content
from lora_registry.push import check
from lora_registry.push import store as upload_rows
from lora_registry.repositories import resolve, store, views
from lora_registry.repositories.insert import Draft, add_weights, check_target, freed, insert
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.faults import fault_point
from lora_registry.tags import moves

MAX_TEXT = 4096
MAX_META = 64


def commit(
    caller: Caller,
    path: RepositoryPath,
    request: CommitRequest,
    *,
    first: Callable[[Session], None] | None = None,
    upload_kind: str | None = None,
) -> CommitResult:
    """Commit an upload session as a version. The same content gives the same version.

    Args:
        first: called first in the transaction that inserts the version, which it may refuse.
        upload_kind: the kind of the session; None: that of the version.

    Raises `rejected` and `base-mismatch` with all findings, `not-found`, `conflict`, `tag-protected`.
    """
    caller.require("writer", path.namespace)
    _check_texts(request)
    for tag in request.tags:
        reference.check_tag(tag)
    draft, findings = _draft(caller, path, request, upload_kind or request.kind)
    fault_point("commit.checked")
    with caller.ctx.db.write() as session:
        if first is not None:
            first(session)
        repo, version, created = insert(session, caller.principal, path, draft)
        added = not created and add_weights(session, caller.principal, repo, version, draft)
        if request.weights_at is not None:
            weights.record(session, caller.principal, version, request.weights_at)
        for alias in request.aliases:
            bases.add_alias(session, repo, alias)
        for tag in request.tags:
            moves.set_tag(
                session, caller.principal, repo, tag, version, expect=moves.UNCONDITIONAL, reason=request.message
            )
        job = enqueue.inspect(caller, session, repo, version) if created else None
        upload_rows.remove(session, request.session)
        fault_point("commit.before")
        view = views.version(session, caller.principal, repo, version)
    fault_point("commit.after")
    with suppress(RegistryError):  # leftovers are swept later; the version is committed
        caller.ctx.blobs.discard_upload(request.session)
    return CommitResult(version=view, created=created, weights_added=added, findings=findings, job=job)


def _draft(
    caller: Caller, path: RepositoryPath, request: CommitRequest, upload_kind: str
) -> tuple[Draft, list[Finding]]:
    """Check the uploaded files. Reads the blobs and the base; writes nothing."""
    files = tuple(sorted(FileEntry(file.path, file.size, Digest.parse(file.digest)) for file in request.files))
    if request.weights_absent and request.kind != "base":
        raise RegistryError("invalid-request", "Only a base may be registered without its weights.")
    if request.weights_at is not None:
        if not request.weights_absent:
            raise RegistryError("invalid-request", "Only weights that are not sent lie elsewhere.")
        weights.check(request.weights_at)
    if request.kind == upload_kind == "model":
        raise RegistryError(
            "unsupported",
            "Versions of kind model are not pushed by this API.",
            hint="Create models with `lora-reg merge`, or upload them with a Hub client: see docs/training.md.",
        )
    with caller.ctx.db.read() as session:
        check_target(store.repository(session, path), path, request.kind)
        stored = _stored(caller.principal, path, request, files, session, upload_kind)
        opened = upload_rows.session_row(session, request.session)
        contents = {
            entry.path: Content.of(blob, entry.path)
            for entry in files
            if str(entry.digest) in stored and (blob := kept.blob(session, str(entry.digest))) is not None
        }
        parents = tuple(resolve.by_text(session, caller.principal, text)[1].id for text in request.parents)
        pin = _pin(session, caller.principal, request)
    # Before the content is judged: what the store damaged is not the author's fault.
    _verify(caller.ctx, request.session, contents.values(), since=opened.created_at if opened else None)
    placed = tuple(
        FileEntry(entry.path, entry.size, contents[entry.path].where if entry.path in contents else entry.digest)
        for entry in files
    )
    try:
        outcome = check.by_kind(caller.ctx, request, placed, pin)
    except RegistryError as error:
        if error.code == "not-found":
            # One of them went while they were checked.
            read = [*contents.values(), *(pin.contents_read() if pin else ())]
            _verify(caller.ctx, request.session, read, since=None)
        raise
    if pin is not None and any(finding.severity == "error" for finding in outcome.findings):
        _verify(caller.ctx, request.session, pin.contents_read(), since=None)
    refuse(outcome.findings)
    fingerprint = None if outcome.fingerprint is None else outcome.fingerprint.encode()
    manifest = Manifest(
        kind=request.kind,
        files=files,
        base=Digest.parse(pin.version.digest) if pin else None,
        fingerprint=None if fingerprint is None else Digest.of(fingerprint),
        config=outcome.config,
    )
    draft = Draft(
        manifest=manifest,
        stored=stored,
        weights_absent=request.weights_absent,
        base_version_id=pin.version.id if pin else None,
        parent_ids=parents,
        facts=outcome.facts,
        fingerprint=fingerprint,
        message=request.message,
        meta=request.meta,
    )
    return draft, [finding for finding in outcome.findings if finding.severity != "error"]


def _verify(ctx: Context, upload_id: str, contents: Iterable[Content], *, since: int | None) -> None:
    """Compare stored bytes with their digests, except those that were verified after `since`.

    Raises RegistryError `corrupt`; the blob is then marked, and the session asks for it. `conflict` if it was freed.
    """
    for content in contents:
        if since is not None and content.verified_at >= since and content.state == "ok":
            continue
        try:
            reading.verify(ctx, content)
        except RegistryError as error:
            if error.code == "corrupt":
                with ctx.db.write() as session:
                    row = kept.blob(session, str(content.where))
                    if row is None or row.state not in kept.KEPT or kept.place(row) != content.where:
                        raise freed(content.name, content.where) from error
                    upload_rows.mark_stored(session, upload_id, str(content.where), stored=False)
            raise


def _stored(
    principal: Principal,
    path: RepositoryPath,
    request: CommitRequest,
    files: tuple[FileEntry, ...],
    session: Session,
    upload_kind: str,
) -> frozenset[str]:
    """Return the digests whose bytes are in the store. Raises `not-found`, and `rejected` if a file was not uploaded.

    A client that lost the response repeats the commit after its session is removed. Then only blobs count that the
    caller can read in a repository anyway.
    """
    row = upload_rows.session_row(session, request.session)
    known = (
        row is not None
        and row.author == principal.name
        and (row.namespace, row.name, row.kind) == (path.namespace, path.name, upload_kind)
        and row.expires_at >= database_now(session)
    )
    announced = upload_rows.files(session, request.session) if known else []
    sizes = {file.digest: (file.size, file.stored) for file in announced}
    result = set()
    for entry in files:
        if request.weights_absent and entry.path.endswith(".safetensors"):
            continue
        digest = str(entry.digest)
        size, stored = sizes.get(digest) or _readable(session, digest, principal) or (entry.size, False)
        if size != entry.size:
            raise RegistryError(
                "size-mismatch", f"{entry.path} is committed with {entry.size} bytes; {size} were uploaded."
            )
        if stored:
            result.add(digest)
        elif not known:
            raise RegistryError(
                "not-found",
                f"There is no upload session {request.session[:40]!r} for {path}.",
                hint="Push again: this opens a new session.",
            )
        else:
            raise RegistryError(
                "rejected",
                f"{entry.path} ({entry.digest.short}) was not uploaded.",
                hint="Send its bytes, then commit.",
            )
    return frozenset(result)


def _readable(session: Session, digest: str, principal: Principal) -> tuple[int, bool] | None:
    size = store.readable_blob(session, digest, principal.visible())
    return None if size is None else (size, True)


def _pin(session: Session, principal: Principal, request: CommitRequest) -> check.PinnedBase | None:
    if request.kind not in ("adapter", "model"):
        if request.base is not None:
            raise RegistryError("invalid-request", f"A version of kind {request.kind} has no base.")
        return None
    if request.base is None:
        if request.kind == "model":
            return None
        raise RegistryError(
            "usage",
            "An adapter needs a base.",
            hint="Give `--base NAME`; `lora-reg base list` lists them.",
        )
    _, version = resolve.by_text(session, principal, request.base)
    return check.load_base(session, version)


def _check_texts(request: CommitRequest) -> None:
    if len(request.message) > MAX_TEXT:
        raise RegistryError("too-large", f"The message has {len(request.message)} characters; the limit is {MAX_TEXT}.")
    if len(request.meta) > MAX_META or any(len(k) > 128 or len(v) > MAX_TEXT for k, v in request.meta.items()):
        raise RegistryError(
            "too-large",
            f"Metadata has at most {MAX_META} pairs, keys up to 128 and values up to {MAX_TEXT} characters.",
        )
    texts = [request.message, *request.meta, *request.meta.values(), *request.aliases]
    if any("\0" in text for text in texts):
        raise RegistryError("invalid-request", "A text of the request contains a NUL character.")
    if request.aliases and request.kind != "base":
        raise RegistryError("invalid-request", "Only a base has aliases.")
