"""What the cache holds, and removing versions from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import msgspec

from lora_contract import decoding
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import Manifest
from lora_contract.reference import Reference
from lora_reg.cache.refs import ResolvedReference
from lora_reg.cache.store import Cache


class CachedVersion(msgspec.Struct, frozen=True):
    """A version whose manifest is in the cache. selectors: tags and numbers that it was pulled as. size: of the files
    that are there, some of which other versions may share."""

    namespace: str
    name: str
    digest: str
    size: int
    selectors: list[str]

    def matches(self, wanted: Reference) -> bool:
        if (self.namespace, self.name) != (wanted.namespace, wanted.name):
            return False
        if wanted.digest is not None:
            return self.digest == str(wanted.digest)
        return wanted.is_bare or wanted.selector() in self.selectors


class CacheContents(msgspec.Struct, frozen=True):
    """size: bytes on disk, each file once."""

    versions: list[CachedVersion]
    size: int


def contents(cache: Cache) -> CacheContents:
    """List the cached versions by name."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for path, entry in _references(cache):
        namespace, name = path.parts[-3], path.parts[-2]
        selectors = found.setdefault((namespace, name, entry.digest), [])
        if not path.stem.startswith("sha256"):
            selectors.append(unquote(path.stem))
    for namespace, name, digest in _snapshots(cache):
        found.setdefault((namespace, name, digest), [])
    versions = [
        CachedVersion(namespace, name, digest, _size(cache, digest), sorted(set(selectors)))
        for (namespace, name, digest), selectors in sorted(found.items())
    ]
    return CacheContents(versions, sum(path.stat().st_size for path in _files(cache)))


def remove(cache: Cache, versions: Sequence[CachedVersion], *, everything: bool = False) -> int:
    """Remove versions, and the blobs that no remaining version needs. Returns the bytes freed.

    everything: also unfinished downloads and blobs of no version.
    """
    before = sum(path.stat().st_size for path in _files(cache))
    gone = {(one.namespace, one.name, one.digest) for one in versions}
    for path, entry in _references(cache):
        if (path.parts[-3], path.parts[-2], entry.digest) in gone:
            path.unlink(missing_ok=True)
    needed = set() if everything else _needed(cache, contents(cache).versions, gone)
    dropped = {digest for version in versions for digest in _blobs(cache, version.digest)}
    for one in versions:
        shutil.rmtree(
            cache.root / "snapshots" / one.namespace / one.name / Digest.parse(one.digest).commit, ignore_errors=True
        )
    for path in _files(cache):
        if everything or (path.name in dropped and path.name not in needed):
            path.unlink(missing_ok=True)
    return before - sum(path.stat().st_size for path in _files(cache))


def _needed(cache: Cache, versions: Sequence[CachedVersion], gone: set[tuple[str, str, str]]) -> set[str]:
    kept = [one for one in versions if (one.namespace, one.name, one.digest) not in gone]
    return {digest for version in kept for digest in _blobs(cache, version.digest)}


def _blobs(cache: Cache, digest: str) -> list[str]:
    """The manifest's blob and those of its files, in hex."""
    manifest = _manifest(cache, digest)
    return [Digest.parse(digest).hex, *(entry.digest.hex for entry in manifest.files)] if manifest else []


def _size(cache: Cache, digest: str) -> int:
    manifest = _manifest(cache, digest)
    entries = {entry.digest: entry.size for entry in manifest.files} if manifest else {}
    return sum(size for blob, size in entries.items() if cache.has(blob, size))


def _manifest(cache: Cache, digest: str) -> Manifest | None:
    try:
        return cache.manifest(Digest.parse(digest))
    except RegistryError:
        return None


def _references(cache: Cache) -> Iterator[tuple[Path, ResolvedReference]]:
    for path in sorted((cache.root / "refs").glob("*/*/*/*.json")):
        try:
            yield path, decoding.decode(path.read_bytes(), ResolvedReference)
        except (OSError, msgspec.MsgspecError):
            continue


def _snapshots(cache: Cache) -> Iterator[tuple[str, str, str]]:
    """Versions with a folder of their own, whose manifest is found by its commit."""
    manifests = {}
    for path in (cache.root / "blobs" / "sha256").glob("*/*"):
        manifests[path.name[:40]] = f"sha256:{path.name}"
    for folder in (cache.root / "snapshots").glob("*/*/*"):
        if folder.name in manifests:
            yield folder.parts[-3], folder.parts[-2], manifests[folder.name]


def _files(cache: Cache) -> list[Path]:
    """Blobs and unfinished downloads. Snapshots are hard links to blobs."""
    return [
        path for pattern in ("blobs/sha256/*/*", "downloads/*") for path in cache.root.glob(pattern) if path.is_file()
    ]
