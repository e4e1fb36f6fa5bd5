"""Commit an upload session as a version: check what was stored, then insert it in one transaction."""

from __future__ import annotations

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
from lora_registry.jobs import enqueue
from lora_registry.push import check
from lora_registry.push import store as upload_rows
from lora_registry.repositories import resolve, store, views
from lora_registry.repositories.insert import Draft, check_target, insert
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.faults import fault_point
from lora_registry.tags import moves

MAX_TEXT = 4096
MAX_META = 64


def commit(caller: Caller, path: RepositoryPath, request: CommitRequest) -> CommitResult:
    """Commit an upload session as a version. The same content gives the same version.

    Raises `rejected` and `base-mismatch` with all findings, `not-found`, `conflict`, `tag-protected`.
    """
    caller.require("writer", path.namespace)
    _check_texts(request)
    for tag in request.tags:
        reference.check_tag(tag)
    draft, findings = _draft(caller, path, request)
    fault_point("commit.checked")
    with caller.ctx.db.write() as session:
        repo, version, created = insert(session, caller.principal, path, draft)
        for alias in request.aliases:
            bases.add_alias(session, repo, alias)
        for tag in request.tags:
            moves.set_tag(
                session, caller.principal, repo, tag, version, expect=moves.UNCONDITIONAL, reason=request.message
            )
        job = enqueue.inspect(caller, session, repo, version) if created else None
        upload_rows.remove(session, request.session)
        fault_point("commit.before")
        view = views.version(session, repo, version)
    fault_point("commit.after")
    with suppress(RegistryError):  # leftovers are swept later; the version is committed
        caller.ctx.blobs.discard_upload(request.session)
    return CommitResult(version=view, created=created, findings=findings, job=job)


def _draft(caller: Caller, path: RepositoryPath, request: CommitRequest) -> tuple[Draft, list[Finding]]:
    """Check the uploaded files. Reads the blobs and the base; writes nothing."""
    files = tuple(sorted(FileEntry(file.path, file.size, Digest.parse(file.digest)) for file in request.files))
    if request.weights_absent and request.kind != "base":
        raise RegistryError("invalid-request", "Only a base may be registered without its weights.")
    with caller.ctx.db.read() as session:
        check_target(store.repository(session, path), path, request.kind)
        stored = _stored(caller.principal, path, request, files, session)
        parents = tuple(resolve.by_text(session, caller.principal, text)[1].id for text in request.parents)
        pin = _pin(session, caller.principal, request)
    outcome = check.by_kind(caller.ctx, request, files, pin)
    refuse(outcome.findings)
    manifest = Manifest(
        kind=request.kind,
        files=files,
        base=Digest.parse(pin.version.digest) if pin else None,
        fingerprint=outcome.fingerprint.digest if outcome.fingerprint else None,
        weights_absent=request.weights_absent,
        config=outcome.config,
    )
    draft = Draft(
        manifest=manifest,
        stored=stored,
        base_version_id=pin.version.id if pin else None,
        parent_ids=parents,
        facts=outcome.facts,
        fingerprint=outcome.fingerprint,
        message=request.message,
        meta=request.meta,
    )
    return draft, [finding for finding in outcome.findings if finding.severity != "error"]


def _stored(
    principal: Principal,
    path: RepositoryPath,
    request: CommitRequest,
    files: tuple[FileEntry, ...],
    session: Session,
) -> frozenset[str]:
    """Return the digests whose bytes are in the store. Raises `not-found`, and `rejected` if a file was not uploaded.

    A client that lost the response repeats the commit after its session is removed. Then only blobs count that the
    caller can read in a repository anyway.
    """
    row = upload_rows.session_row(session, request.session)
    known = (
        row is not None
        and row.author == principal.name
        and (row.namespace, row.name, row.kind) == (path.namespace, path.name, request.kind)
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
