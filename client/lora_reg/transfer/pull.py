"""Pull: resolve the reference, fetch the manifest and the missing blobs, and provide them as a folder.

Nothing becomes visible before its digest is verified. If everything is cached, the cost is one conditional request.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import Manifest, parse
from lora_contract.reference import Reference
from lora_reg.cache import refs
from lora_reg.cache.store import Cache
from lora_reg.client import Client
from lora_reg.progress import SILENT, Progress
from lora_reg.transfer.download import fetch_blobs
from lora_reg.transfer.folder import write_folder


@dataclass(frozen=True, slots=True)
class Pulled:
    """The result of a pull.

    Attributes:
        reference: as requested, with its namespace.
        number: of the version; 0 if it is not known (a digest pulled offline).
        fetched: bytes that were downloaded.
        written: False if all files were there already.
        yanked: the reason if the version is yanked.
        resolved_at: offline, when the server was last asked.
    """

    reference: str
    namespace: str
    name: str
    number: int
    digest: str
    path: Path
    files: tuple[str, ...]
    size: int
    fetched: int
    written: bool
    yanked: str | None = None
    resolved_at: str | None = None


@dataclass(frozen=True, slots=True)
class _Meaning:
    digest: Digest
    number: int
    etag: str = ""
    yanked: str | None = None
    at: str | None = None
    name: str | None = None
    asked: bool = True
    weights_absent: bool = False


def pull(
    client: Client,
    ref: str | Reference,
    *,
    output: str | Path | None = None,
    cache: Cache | None = None,
    offline: bool | None = None,
    progress: Progress = SILENT,
    warn: Callable[[str], None] | None = None,
) -> Pulled:
    """Download a version into the cache, or into the folder `output`.

    Args:
        client: of the registry.
        ref: reference of the version.
        output: folder to write; None returns a folder in the cache, which must not be changed.
        cache: None uses the cache of the settings.
        offline: use the last resolved version, without a request; None: as the settings say.
        progress: receives the progress of the download.
        warn: called with a sentence if the cache cannot be written and the pull continues without it.

    Raises RegistryError `not-found`, `digest-mismatch`, `size-mismatch`, `exists` (the folder contains other files).
    """
    wanted = client.parse(ref).folded()
    cache = cache or Cache(client.settings.cache)
    offline = client.settings.offline if offline is None else offline
    if output is None or offline or _writable(cache.root):
        return _pull(client, wanted, output, cache, offline, progress)
    if warn is not None:
        warn(f"the cache {cache.root} is not writable; continuing without it.")
    with _temporary(Path(output)) as temporary:
        return _pull(client, wanted, output, temporary, offline, progress)


def _pull(
    client: Client, wanted: Reference, output: str | Path | None, cache: Cache, offline: bool, progress: Progress
) -> Pulled:
    meaning = _last(client, wanted, cache) if offline else _ask(client, wanted, cache)
    version = Reference(wanted.name, wanted.namespace, digest=meaning.digest)
    manifest = _manifest(client, version, cache, offline)
    if meaning.weights_absent or manifest.weights_absent:
        raise RegistryError(
            "not-found",
            f"{version.repository} was registered with --manifest-only: its weights are not in the registry.",
            hint="Download them from the publisher of the model.",
        )
    missing = cache.missing(manifest.files)
    if missing and offline:
        raise RegistryError(
            "not-found",
            f"{wanted} is not complete in the cache: {', '.join(entry.path for entry in missing[:5])} missing.",
            hint="Pull it once without --offline.",
        )
    fetched = fetch_blobs(client, version, missing, cache, progress) if missing else 0
    if output is None:
        path, written = cache.snapshot(version.namespace or "", version.name, meaning.digest, manifest), bool(missing)
    else:
        path, written = Path(output), write_folder(Path(output), meaning.digest, manifest, cache)
    if meaning.asked:
        refs.write(
            cache,
            client.settings.server,
            wanted,
            digest=meaning.digest,
            number=meaning.number,
            etag=meaning.etag,
            yanked=meaning.yanked,
            name=meaning.name,
        )
    return Pulled(
        reference=str(wanted),
        namespace=version.namespace or "",
        name=meaning.name or version.name,
        number=meaning.number,
        digest=str(meaning.digest),
        path=path,
        files=tuple(entry.path for entry in manifest.files),
        size=sum(entry.size for entry in manifest.files),
        fetched=fetched,
        written=written,
        yanked=meaning.yanked,
        resolved_at=meaning.at if offline else None,
    )


def _writable(folder: Path) -> bool:
    """Whether files can be created in a folder, which is created if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def _temporary(output: Path) -> Iterator[Cache]:
    """A cache for one pull, on the disk of the output."""
    parent = output.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".cache", dir=parent) as folder:
        yield Cache(Path(folder))


def _ask(client: Client, wanted: Reference, cache: Cache) -> _Meaning:
    """Ask the server what the reference means, conditionally if the last answer is complete in the cache."""
    last = refs.read(cache, client.settings.server, wanted)
    etag = last.etag if last and last.etag and _is_whole(cache, Digest.parse(last.digest)) else None
    view, etag = client.resolve(wanted, etag=etag)
    if view is None:
        assert last is not None
        return _Meaning(Digest.parse(last.digest), last.number, yanked=last.yanked, name=last.name, asked=False)
    digest = Digest.parse(view.digest)
    if wanted.digest is not None and digest != wanted.digest:
        raise RegistryError("digest-mismatch", f"The server answered {digest.short}; expected {wanted.digest.short}.")
    return _Meaning(digest, view.number, etag, view.yanked, name=view.name, weights_absent=view.weights_absent)


def _last(client: Client, wanted: Reference, cache: Cache) -> _Meaning:
    """The last resolved version of the reference; a digest needs no resolving."""
    last = refs.read(cache, client.settings.server, wanted)
    if last is not None:
        return _Meaning(
            Digest.parse(last.digest), last.number, yanked=last.yanked, at=last.at, name=last.name, asked=False
        )
    if wanted.digest is not None and wanted.tag is None and wanted.version is None:
        return _Meaning(wanted.digest, 0, asked=False)
    raise RegistryError(
        "not-found",
        f"{wanted} was never pulled from {client.settings.server} on this machine.",
        hint="Pull it once without --offline.",
    )


def _is_whole(cache: Cache, digest: Digest) -> bool:
    manifest = cache.manifest(digest)
    return manifest is not None and not cache.missing(manifest.files)


def _manifest(client: Client, version: Reference, cache: Cache, offline: bool) -> Manifest:
    assert version.digest is not None
    found = cache.manifest(version.digest)
    if found is not None:
        return found
    if offline:
        raise RegistryError(
            "not-found", f"The manifest of {version} is not in the cache.", hint="Pull it once without --offline."
        )
    data = client.manifest(version)
    if Digest.of(data) != version.digest:
        raise RegistryError(
            "digest-mismatch",
            f"The manifest has {Digest.of(data).short}; expected {version.digest.short}.",
            hint="Pull again; if this persists, ask an administrator to run `lora-registry fsck`.",
        )
    cache.put(data, version.digest)
    return parse(data)
