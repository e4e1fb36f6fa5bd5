"""Fetch the weights of bases that were registered without them, when a job needs them.

Bytes go by ranges into parts of an upload, which the store keeps: what has arrived is not fetched again, whoever goes
on. A file becomes a blob once its sha256 is the one that the version pins, and then counts as stored. One job fetches,
by a lease; others wait for it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from sqlmodel import Session

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.findings import refuse
from lora_contract.manifest import FileEntry, parse
from lora_registry.auth.principals import WORKER
from lora_registry.bases import store as base_store
from lora_registry.bases import weights
from lora_registry.blobs.parts import part_size_for
from lora_registry.context import Context
from lora_registry.db.scope import Scope
from lora_registry.db.tables import Repository, Version, VersionBlob, WeightSource
from lora_registry.jobs.engine.kinds import JobContext
from lora_registry.keeping import lease
from lora_registry.keeping import store as kept
from lora_registry.push import check
from lora_registry.repositories import insert, store, usage
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.faults import fault_point
from lora_registry.worker.hub import HubFiles, read_token

STEP: Final = "weights"
PARALLEL: Final = 4
"""Parts at a time; each is in memory once if the store is not a folder."""
LEASE_SECONDS: Final = 60.0
_ATTEMPTS: Final = 5
_TELL_SECONDS: Final = 2.0
_WAIT_SECONDS: Final = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Missing:
    """A version without its weights. files: those that are not stored yet. name: for people."""

    version: Version
    repo: Repository
    source: WeightSource
    files: list[VersionBlob]

    @property
    def name(self) -> str:
        return f"{self.repo.label}:v{self.version.number}"


def ensure(ctx: Context, job: JobContext, version_ids: Iterable[int]) -> None:
    """Have the weights of these versions in the store, by fetching those that are not.

    Raises `unsupported` if their source may not be accessed, `unavailable` if it does not answer, `digest-mismatch` if
    it has other bytes than the version pins, `quota`.
    """
    for version_id in version_ids:
        if _missing(ctx, version_id) is not None:
            with _leased(ctx, job, version_id):
                missing = _missing(ctx, version_id)
                if missing is not None:
                    _fetch_all(ctx, job, missing)


def _missing(ctx: Context, version_id: int) -> _Missing | None:
    with ctx.db.read() as session:
        version = store.versions_by_id(session, [version_id])[version_id]
        if not version.weights_absent:
            return None
        repo = store.repositories_by_id(session, [version.repository_id])[version.repository_id]
        source = base_store.weight_source(session, version_id)
        files = [file for file in store.files_of(session, [version_id])[version_id] if not file.stored]
    name = f"{repo.label}:v{version.number}"
    if source is None:
        raise RegistryError("unsupported", f"The weights of {name} are not stored.", hint="Add the base with them.")
    if source.endpoint not in ctx.settings.hubs:
        raise weights.not_allowed(source, name)
    return _Missing(version, repo, source, files)


@contextmanager
def _leased(ctx: Context, job: JobContext, version_id: int) -> Iterator[None]:
    """Hold the lease on the weights of a version; wait while another job does."""
    engine, name = ctx.db.engine, f"weights-{version_id}"
    told = 0.0
    while (claimed := lease.claim(engine, name, seconds=LEASE_SECONDS, holder=job.job_id)) is None:
        if time.monotonic() - told > _WAIT_SECONDS:
            job.progress(STEP, "Waiting for the weights of the base, which another job fetches")
            told = time.monotonic()
        time.sleep(_TELL_SECONDS)
        if _missing(ctx, version_id) is None:
            break
    if claimed is None:
        yield
        return
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(LEASE_SECONDS / 4):
            with suppress(RegistryError):  # two that fetch the same bytes cost time, and nothing else
                claimed.renew()

    threading.Thread(target=renew, name="weights-lease", daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        with suppress(RegistryError):
            claimed.release(done=False)


def _fetch_all(ctx: Context, job: JobContext, missing: _Missing) -> None:
    settings = ctx.settings
    with ctx.db.read() as session:
        usage.check(session, missing.repo.namespace, size=sum(file.size for file in missing.files), versions=0)
    # The token is for the first Hub alone.
    ours = settings.hub_token_file is not None and settings.hubs[0] == missing.source.endpoint
    token = read_token(settings.hub_token_file) if ours and settings.hub_token_file is not None else None
    with HubFiles(missing.source, token) as hub:
        for file in missing.files:
            if not _shared(ctx, missing, file):
                _fetch(ctx, job, hub, missing, file)
    _complete(ctx, missing)


def _shared(ctx: Context, missing: _Missing, file: VersionBlob) -> bool:
    """Take a blob that is stored already. Only one that all who read the version may read: knowing a digest must not
    give access to its bytes."""
    public = ctx.settings.auth == "none"
    scope = Scope() if public else Scope((missing.repo.namespace,), ("public",))
    with ctx.db.write() as session:
        if store.readable_blob(session, file.digest, scope) != file.size:
            return False
        _lock(session, missing)
        if file.digest not in kept.rescue(session, [file.digest]):
            return False
        _set_stored(session, missing, file)
    return True


def _fetch(ctx: Context, job: JobContext, hub: HubFiles, missing: _Missing, file: VersionBlob) -> None:
    """Fetch a file in parts, check its digest, and count it as stored."""
    digest, size = Digest.parse(file.digest), file.size
    step = part_size_for(size, ctx.settings.upload_part_bytes)
    # Of this version alone: other bytes that somebody announced under the digest are not joined with these.
    upload = hashlib.sha256(f"{missing.version.id} {file.digest} {step}".encode()).hexdigest()[:32]
    lengths = {number: min(step, size - (number - 1) * step) for number in range(1, -(-size // step) + 1)}
    stored = ctx.blobs.parts(upload, digest)
    needed = [number for number, length in lengths.items() if stored.get(number) != length]
    received = [size - sum(lengths[number] for number in needed)]
    counting, stop = threading.Lock(), threading.Event()

    def count(length: int) -> None:
        with counting:
            received[0] += length
        if stop.is_set():
            raise RegistryError("unavailable", "The fetch was stopped.")

    def part(number: int) -> None:
        start = (number - 1) * step
        _attempt(lambda: _receive(ctx, hub, file, upload, number, start, lengths[number], count), stop)
        fault_point("weights.part")

    def tell() -> None:
        job.progress(
            STEP, f"Fetching {file.path} of {hub.name} from {hub.host}", done=received[0], total=size, unit="bytes"
        )

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="weights") as pool:
        try:
            _until_done([pool.submit(part, number) for number in needed], tell)
            with ctx.db.read() as session:
                where = kept.place_to_store(session, file.digest)
            _until_done([pool.submit(ctx.blobs.adopt, upload, digest=where, size=size)], tell)
        except RegistryError as error:
            pool.shutdown(cancel_futures=True)  # parts that are on their way arrive: they need not be fetched again
            if error.code in ("digest-mismatch", "size-mismatch"):
                raise RegistryError(
                    "digest-mismatch",
                    f"{hub.host} has other bytes of {file.path} in {hub.name} than {missing.name} pins.",
                    hint="Push the weights from the folder that the base was registered from.",
                ) from error
            raise
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    fault_point("weights.adopted")
    with ctx.db.write() as session:
        _lock(session, missing)
        kept.record(session, {where: size})
        _set_stored(session, missing, file)
    ctx.blobs.discard_upload(upload)


def _receive(
    ctx: Context,
    hub: HubFiles,
    file: VersionBlob,
    upload: str,
    number: int,
    start: int,
    length: int,
    count: Callable[[int], None],
) -> None:
    """Fetch a part into the store. count: called with the number of bytes that arrived, or were lost."""
    arrived = 0
    reception = ctx.blobs.receive_part(upload, Digest.parse(file.digest), number, size=length)
    try:
        with hub.open(file.path, start, length, file.size) as chunks:
            for chunk in chunks:
                arrived += len(chunk)
                count(len(chunk))
                reception.write(chunk)
        reception.finish()
    except BaseException:
        with suppress(RegistryError):
            count(-arrived)
        raise
    finally:
        reception.discard()


def _attempt(work: Callable[[], T], stop: threading.Event) -> T:
    """Try again what may help: a long fetch outlives many connections. After that the step of the job is retried."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return work()
        except RegistryError as error:
            if not error.kind.retryable or stop.wait(2.0 ** (attempt - 1)):
                raise
    return work()


def _until_done(futures: list[Future[None]], tell: Callable[[], None]) -> None:
    """Wait for all, and tell how far they are. Raises the first error."""
    pending = set(futures)
    told = 0.0
    while pending:
        done, pending = wait(pending, timeout=_TELL_SECONDS, return_when="FIRST_COMPLETED")
        for future in done:
            future.result()
        if time.monotonic() - told >= _TELL_SECONDS:
            tell()
            told = time.monotonic()


def _set_stored(session: Session, missing: _Missing, file: VersionBlob) -> None:
    """Count a file of the version as stored; its blob is locked, and before it the repository."""
    for row in store.files_of(session, [missing.version.id])[missing.version.id]:
        if row.path == file.path and not row.stored:
            usage.add(session, missing.repo.namespace, size=row.size, versions=0)
            row.stored = True
            session.add(row)


def _complete(ctx: Context, missing: _Missing) -> None:
    """Compare the weights with the fingerprint, which the client computed, and record that they are stored.

    Raises `rejected`: what the version says of its tensors is not so.
    """
    manifest = parse(missing.version.manifest)
    with ctx.db.read() as session:
        places = kept.addresses(session, [str(entry.digest) for entry in manifest.files])
    outcome = check.base(ctx, tuple(FileEntry(e.path, e.size, places[str(e.digest)]) for e in manifest.files))
    refuse(outcome.findings)
    if outcome.fingerprint is None or Digest.of(outcome.fingerprint.encode()) != manifest.fingerprint:
        raise RegistryError(
            "rejected",
            f"The weights of {missing.name} have other tensors than it was registered with.",
            hint="Register the base again, from its folder or its Hub.",
        )
    with ctx.db.write() as session:
        version = _lock(session, missing)
        if version.weights_absent:
            insert.complete(session, WORKER, missing.repo, version)


def _lock(session: Session, missing: _Missing) -> Version:
    """Lock the repository, as every change in it does first, and read the version. Raises `deleted`."""
    store.repository(session, RepositoryPath(missing.repo.namespace, missing.repo.name), lock=True)
    version = store.versions_by_id(session, [missing.version.id])[missing.version.id]
    if version.deleted_at is not None:
        raise RegistryError("deleted", "The base was deleted while its weights were fetched.")
    return version
