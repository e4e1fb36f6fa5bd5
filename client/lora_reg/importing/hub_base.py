"""Register a base that lies on a Hub without fetching its weights: small files, and headers of weights by ranges.

The Hub states the sha256 of what it keeps by LFS, so the version is the one that the folder would make. Weights that it
keeps in git, which takes only small files, are fetched and hashed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from lora_contract import canonical, pipelines
from lora_contract.adapter.files import AdapterFile, is_base_file, is_pipeline_file
from lora_contract.errors import RegistryError
from lora_contract.findings import refuse
from lora_contract.fingerprint import build_fingerprint
from lora_contract.manifest import check_path
from lora_contract.wire.repositories import CommitRequest, HubLocation
from lora_contract.wire.uploads import FileSpec
from lora_reg.client import Client
from lora_reg.importing.fetch import fetch, sha256_of
from lora_reg.importing.hub import Hub, HubRepository
from lora_reg.importing.items import SourceFile
from lora_reg.progress import SILENT, Progress
from lora_reg.transfer import push
from lora_reg.transfer.push import Pushed
from lora_reg.transfer.scan import scan_folder

_WEIGHTS: Final = ".safetensors"
_HEAD: Final = 64 * 1024
"""Bytes of a weight file that are asked for at first: the header of most shards."""
_PARALLEL: Final = 4
_MAX_INDEX: Final = 64 * 1024
_UNSTATED: Final = 64 << 20
"""Bytes of a weight file up to which it is fetched to compute its sha256; the Hub keeps at most 10 MB without one."""


@dataclass(frozen=True, slots=True)
class HubBase:
    """A registered base. received: bytes from the Hub. weights: bytes of its weights there. host: of the Hub."""

    pushed: Pushed
    received: int
    weights: int
    host: str


def add_base_from_hub(
    client: Client,
    name: str,
    hub: Hub,
    repo: str,
    revision: str | None,
    *,
    weights: bool = False,
    aliases: Sequence[str] = (),
    tags: Sequence[str] = (),
    message: str = "",
    progress: Progress = SILENT,
) -> HubBase:
    """Register a base from a Hub, with `repo` as an alias.

    Args:
        name: of the base in the registry, optionally with a tag.
        hub: where it lies.
        repo, revision: its id there, and a branch, tag or commit; None: the default branch.
        weights: fetch the weights too, and upload them.

    Raises RegistryError `rejected` with all findings, `not-found`.
    """
    found = hub.repository(repo, revision)
    message = message or f"From hf://{repo}@{found.commit}"
    aliases = list(dict.fromkeys([*aliases, repo]))
    work = client.settings.cache / "imports" / hashlib.sha256(f"base {repo}\n{found.commit}".encode()).hexdigest()[:32]
    ours = Fetched(hub, found, work, progress)
    files, left_out = _chosen(found, ours, whole=weights)
    shards = [file for file in files if file.path.endswith(_WEIGHTS)]
    if weights:
        for file in shards:
            ours.fetch(file)
        pushed = push.add_base(
            client, name, ours.folder, aliases=aliases, tags=tags, message=message, progress=progress
        )
    else:
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(ours.head, (file for file in shards if file.sha256 is not None)))
        pushed = _by_headers(client, name, ours, files, left_out, aliases, tags, message, progress)
    shutil.rmtree(work, ignore_errors=True)
    return HubBase(replace(pushed, left_out=left_out), ours.received, sum(file.size or 0 for file in shards), hub.host)


def _by_headers(
    client: Client,
    name: str,
    ours: Fetched,
    files: Sequence[SourceFile],
    left_out: tuple[str, ...],
    aliases: list[str],
    tags: Sequence[str],
    message: str,
    progress: Progress,
) -> Pushed:
    target, tags = push.target_of(client, ours.folder, name, tags)
    table = {file.path: (file.size or 0, f"sha256:{_sha256(file, ours)}") for file in files}
    findings = push.base_findings([AdapterFile(path, size) for path, (size, _) in table.items()], ours.read, left_out)
    refuse(findings)
    fingerprint = build_fingerprint(table, ours.read)
    specs = [FileSpec(path=path, size=size, digest=digest) for path, (size, digest) in sorted(table.items())]
    request = CommitRequest(
        session="",
        kind="base",
        files=specs,
        tags=list(tags),
        message=message,
        weights_absent=True,
        weights_at=ours.location,
        fingerprint=msgspec.to_builtins(fingerprint),
        aliases=aliases,
    )
    scan = scan_folder(ours.folder)
    small = [spec for spec in specs if not spec.path.endswith(_WEIGHTS)]
    committed, sent = push.send_and_commit(client, target, scan, small, request, progress)
    pushed = push.pushed_of(target, scan, findings, None, committed, sent)
    return replace(pushed, files=tuple(table), size=sum(size for size, _ in table.values()))


def _chosen(found: HubRepository, ours: Fetched, *, whole: bool) -> tuple[list[SourceFile], tuple[str, ...]]:
    """The files that a version of this base has, as `base add` takes them from a folder, and the names of the others.

    The small ones are fetched: an index says which weights are in use. whole: the weights will be fetched too.
    """
    components = _components(found, ours)
    kept = {file.path: file for file in found.files if _may_be_part(file.path, components)}
    for file in kept.values():
        large = file.path.endswith(_WEIGHTS) and (file.sha256 is not None or whole or (file.size or 0) > _UNSTATED)
        if file.size is None or (large and file.sha256 is None and not whole):
            raise RegistryError(
                "unsupported",
                f"The Hub does not state size and sha256 of {file.path}.",
                hint="Add --weights, which fetches it, or download the repository and add its folder.",
            )
        if not large:
            ours.fetch(file)
    unused = push.unused_weights({path: file.size or 0 for path, file in kept.items()}, ours.read)
    for path in unused:
        (ours.folder / path).unlink(missing_ok=True)
        del kept[path]
    return [kept[path] for path in sorted(kept)], tuple(
        sorted(file.path for file in found.files if file.path not in kept)
    )


def _components(found: HubRepository, ours: Fetched) -> frozenset[str]:
    """The folders of a pipeline's components; empty for a repository of one model."""
    index = next((file for file in found.files if file.path == pipelines.FILE), None)
    if index is None or index.size is None or index.size > _MAX_INDEX:
        return frozenset()
    ours.fetch(index)
    document = canonical.loads_strict(
        (ours.folder / index.path).read_bytes(), what=pipelines.FILE, max_bytes=_MAX_INDEX
    )
    return pipelines.folders_of(document)


def _may_be_part(path: str, components: frozenset[str]) -> bool:
    if components and (path == pipelines.FILE or path.partition("/")[0] in components):
        return is_pipeline_file(path) and check_path(path) == path
    return "/" not in path and is_base_file(path) and check_path(path) == path


def _sha256(file: SourceFile, ours: Fetched) -> str:
    fetched = ours.folder / file.path
    if fetched.exists():
        return sha256_of(fetched)
    assert file.sha256 is not None
    return file.sha256


class Fetched:
    """What is here of a repository: whole files in a folder, and the first bytes of weight files."""

    def __init__(self, hub: Hub, found: HubRepository, work: Path, progress: Progress) -> None:
        self._hub, self._found, self._progress = hub, found, progress
        self._sizes: Mapping[str, int] = {file.path: file.size or 0 for file in found.files}
        self._heads: dict[str, bytes] = {}
        self.folder = work / "files"
        self.received = 0

    @property
    def location(self) -> HubLocation:
        return HubLocation(endpoint=self._hub.endpoint, repository=self._found.id, commit=self._found.commit)

    def fetch(self, file: SourceFile) -> None:
        """Fetch a whole file into the folder."""
        place = self.folder / file.path
        if place.exists():
            return
        partial = self.folder.parent / "partial" / file.path
        self._progress.begin(f"Fetching {file.path}", file.size)
        try:
            fetch(
                lambda start: self._hub.open(self._found.id, self._found.commit, file.path, start),
                file,
                partial,
                self._progress,
            )
        finally:
            self._progress.end()
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(place)
        self.received += file.size or 0

    def head(self, file: SourceFile) -> None:
        """Fetch the first bytes of a file."""
        self._extend(file.path, min(file.size or 0, _HEAD))

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Read bytes of a file, from the folder or by a range request, which also fetches what comes before."""
        place = self.folder / path
        if place.exists():
            with place.open("rb") as stream:
                stream.seek(offset)
                return stream.read(length)
        self._extend(path, offset + length)
        return self._heads[path][offset : offset + length]

    def _extend(self, path: str, end: int) -> None:
        have = self._heads.get(path, b"")
        if len(have) < end:
            more = self._hub.read(self._found.id, self._found.commit, path, len(have), end - len(have))
            self._heads[path] = have + more
            self.received += len(more)
