"""Commits of Hub clients. One that makes a whole version is checked and becomes it; any other is staged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from sqlmodel import Session

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import MAX_FILES, Kind, check_path
from lora_contract.wire.repositories import CommitRequest
from lora_contract.wire.uploads import FileSpec
from lora_registry.auth.caller import Caller
from lora_registry.db.dialect import database_now
from lora_registry.hub import bases, content, errors, heads, store, uploads
from lora_registry.hub.heads import Files, Head
from lora_registry.hub.inbox import StoringInbox
from lora_registry.hub.ndjson import Lines
from lora_registry.keeping import store as kept
from lora_registry.push import commit as push
from lora_registry.repositories import usage
from lora_registry.repositories.paths import RepositoryPath

ATTEMPTS: Final = 5
"""How often a commit is applied anew because another one was faster."""


@dataclass(frozen=True, slots=True)
class Change:
    """digest None: the path is deleted; folder: with all below it. size None: of a file that is copied."""

    path: str
    digest: str | None = None
    size: int | None = None
    folder: bool = False


@dataclass(frozen=True, slots=True)
class Committed:
    """commit: the new head. number: of the version that it is; None if the files do not make one yet."""

    commit: str
    number: int | None
    left_out: tuple[str, ...]


@dataclass(slots=True)
class Incoming:
    """A commit whose body arrives. `feed` and `finish` do I/O; `close` it in the end."""

    caller: Caller
    path: RepositoryPath
    kind: str
    branch: str
    message: str = ""
    parent: str = ""
    changes: list[Change] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    inbox: StoringInbox = field(init=False)
    lines: Lines = field(init=False)

    def __post_init__(self) -> None:
        self.inbox = StoringInbox(self.caller, self.path, self._received)
        self.lines = Lines(self.inbox, self._line)

    def feed(self, data: bytes) -> None:
        self.lines.feed(data)

    def finish(self) -> Committed:
        self.lines.end()
        return _apply(self)

    def close(self) -> None:
        self.inbox.close()

    def _received(self, path: str, digest: str, size: int) -> None:
        if not digest:
            self.left_out.append(path)
        else:
            self.changes.append(Change(check_path(path), digest, size))

    def _line(self, key: str, value: dict[str, Any]) -> None:
        match key:
            case "header":
                self.message = _message(value)
                self.parent = str(value.get("parentCommit") or "")
            case "lfsFile":
                self._lfs_file(value)
            case "deletedFile" | "deletedFolder":
                path = _text(value, "path").strip("/")
                self.changes.append(Change(path, folder=key == "deletedFolder"))
            case _:
                raise RegistryError("invalid-request", f"A commit has no lines of the key {key[:40]!r}.")

    def _lfs_file(self, value: dict[str, Any]) -> None:
        path, size = _text(value, "path"), value.get("size")
        if value.get("algo", "sha256") != "sha256" or (size is not None and not isinstance(size, int)):
            raise RegistryError("invalid-request", "An lfsFile is named by its sha256 and has a size.")
        if content.is_left_out(path):
            self.left_out.append(path)
            return
        digest = Digest.parse(f"sha256:{_text(value, 'oid')}")
        self.changes.append(Change(check_path(path), str(digest), size))


def begin(caller: Caller, repo_id: str, kind: str, revision: str) -> Incoming:
    """Begin a commit, before its body is read. Raises `forbidden`, and `not-found` as RepoNotFound or
    RevisionNotFound."""
    path = heads.writable(caller, repo_id)
    branch = heads.branch_of(revision)
    with caller.ctx.db.read() as session:
        heads.read(session, caller, path, kind, branch)
    return Incoming(caller, path, kind, branch)


def _apply(incoming: Incoming) -> Committed:
    for change in incoming.changes:
        if change.digest is not None:
            uploads.require_stored(incoming.caller, incoming.path, Digest.parse(change.digest))
    for attempt in range(ATTEMPTS):
        try:
            return _attempt(incoming)
        except _OvertakenError as error:
            if attempt == ATTEMPTS - 1 or incoming.parent:
                raise RegistryError(
                    "precondition-failed" if incoming.parent else "unavailable",
                    f"Another commit to {incoming.path} was faster.",
                    hint="Push again.",
                ) from error
    raise AssertionError("the last attempt returns or raises")


def _attempt(incoming: Incoming) -> Committed:
    caller, path = incoming.caller, incoming.path
    with caller.ctx.db.read() as session:
        head = heads.read(session, caller, path, incoming.kind, incoming.branch)
        files = _changed(session, incoming, head)
    if incoming.parent and not head.matches(incoming.parent):
        raise RegistryError(
            "precondition-failed",
            f"The parent commit {incoming.parent[:40]!r} is not the newest of {path}, which is {head.commit}.",
            hint="Read the repository again and repeat the commit on top of it.",
        )
    left_out = tuple(incoming.left_out)
    if files == head.files:
        number = head.version.number if head.version and head.commit == head.version.commit_id else None
        return Committed(head.commit, number, left_out)
    is_base = head.repository is not None and head.repository.kind == "base"
    kind = content.whole(files, dataset_repository=incoming.kind == "dataset", base=is_base)
    if kind is None:
        return Committed(_stage(incoming, head, files), None, left_out)
    return _commit(incoming, head, files, kind, left_out)


def _changed(session: Session, incoming: Incoming, head: Head) -> Files:
    """Apply the changes to the files of the head. Raises `not-found` as EntryNotFound, `rejected`."""
    files = dict(head.files)
    for change in incoming.changes:
        if change.digest is not None:
            size = change.size if change.size is not None else _size(session, change.digest)
            files[change.path] = (change.digest, size)
            continue
        gone = [name for name in files if name == change.path or (change.folder and name.startswith(change.path + "/"))]
        if not gone and not content.is_left_out(change.path):
            raise errors.entry_not_found(
                f"A file with this name doesn't exist: {change.path[:200]!r}.", commit=head.commit
            )
        for name in gone:
            del files[name]
    if len(files) > MAX_FILES:
        raise RegistryError("rejected", f"A version has at most {MAX_FILES} files, not {len(files)}.")
    return files


def _size(session: Session, digest: str) -> int:
    row = kept.blob(session, digest)
    return row.size if row is not None else 0


def _stage(incoming: Incoming, before: Head, files: Files) -> str:
    """Stage the files. Raises `quota`, `rejected` if the bytes of one were not sent."""
    caller, path = incoming.caller, incoming.path
    new = dict(files.values())
    session_id = uploads.gather(caller, path, new)
    try:
        with caller.ctx.db.write() as session:
            head = _still(session, incoming, before)
            # The session keeps the blobs until the rows do.
            kept.rescue(session, new)
            commit = heads.stage(session, caller, path, incoming.kind, head, files)
            staged = store.staged_bytes(session, path.namespace, database_now(session))
            usage.check(session, path.namespace, size=staged)
    finally:
        uploads.discard(caller.ctx, session_id)
    return commit


def _still(session: Session, incoming: Incoming, before: Head) -> Head:
    """Lock the head and return it. Raises _OvertakenError if it is another one by now."""
    try:
        head = heads.read(session, incoming.caller, incoming.path, incoming.kind, incoming.branch, lock=True)
    except RegistryError as error:
        if error.code != "not-found":
            raise
        raise _OvertakenError from error  # what was staged became a version, or was deleted
    if head.commit != before.commit:
        raise _OvertakenError
    return head


def _commit(incoming: Incoming, before: Head, files: Files, kind: Kind, left_out: tuple[str, ...]) -> Committed:
    caller, path = incoming.caller, incoming.path
    base = bases.choose(caller, path, before, files) if kind == "adapter" else None
    of_it = content.kept(kind, files)
    left_out = (*left_out, *sorted(files.keys() - of_it))
    files = {name: files[name] for name in of_it}
    request = CommitRequest(
        session=uploads.gather(caller, path, dict(files.values())),
        kind=kind,
        files=[FileSpec(path=name, size=size, digest=digest) for name, (digest, size) in sorted(files.items())],
        base=None if base is None else base.reference,
        accept_base=base is not None and base.accept,
        tags=[incoming.branch] if incoming.branch else [],
        message=incoming.message,
        meta=content.metadata(incoming.message),
    )

    def first(session: Session) -> None:
        head = _still(session, incoming, before)
        if head.staging is not None:
            store.remove(session, [head.staging.id])

    try:
        result = push.commit(caller, path, request, first=first, upload_kind=store.UPLOAD_KIND)
    except RegistryError as error:
        if error.code == "rejected" and before.files != before.version_files:
            error.hint += (
                " Files of earlier commits stay staged: replace them, or delete them with `HfApi.delete_file`."
            )
        raise
    finally:
        uploads.discard(caller.ctx, request.session)
    version = result.version
    return Committed(version.commit, version.number, left_out)


def _message(header: dict[str, Any]) -> str:
    summary, description = str(header.get("summary") or ""), str(header.get("description") or "")
    return "\n\n".join(part for part in (summary, description) if part)[: push.MAX_TEXT].replace("\0", "")


def _text(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or not found:
        raise RegistryError("invalid-request", f"A line of the commit has no {name}.")
    return found


class _OvertakenError(Exception):
    """Another commit changed the head meanwhile."""
