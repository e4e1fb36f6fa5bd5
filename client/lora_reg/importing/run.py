"""Import: each adapter of a source becomes a version, once.

What came is told by the metadata of versions: source, revision, digest of the source's files. A second run fetches and
sends nothing; a run that was cut off goes on where it was.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from lora_contract import canonical
from lora_contract.adapter.config import MAX_CONFIG_BYTES
from lora_contract.adapter.report import CONFIG
from lora_contract.errors import RegistryError
from lora_contract.wire.repositories import VersionView
from lora_reg.cache.lock import locked
from lora_reg.client import Client
from lora_reg.importing.bases import Bases
from lora_reg.importing.convert import Ready, prepare
from lora_reg.importing.fetch import fetch, sha256_of
from lora_reg.importing.formats import adapterhub, mlx
from lora_reg.importing.items import Item, Source, Unreadable
from lora_reg.importing.names import Names
from lora_reg.importing.recognise import NotAnAdapter, Recognised, recognise
from lora_reg.progress import SILENT, Progress
from lora_reg.transfer.push import Pushed, push_adapter

SOURCE: Final = "import.source"
REVISION: Final = "import.revision"
DIGEST: Final = "import.digest"
FORMAT: Final = "import.format"
_MAX_PAIRS: Final = 60
_ENDS: Final = frozenset({"unavailable", "storage-unavailable", "rate-limited", "quota"})
"""Errors after which the next adapter would fare no better."""

Outcome = Literal["created", "exists", "already imported", "would come", "not an adapter", "failed"]


class Row(msgspec.Struct, frozen=True):
    """What became of an adapter of the source.

    Args:
        target: the repository, or the version if there is one.
        format: of the source's files.
        received, sent: bytes fetched and uploaded.
        left_out: files of the source that are not part of the version.
        reason, hint: why it did not come.
        exit: exit status of that reason.
    """

    source: str
    revision: str
    outcome: Outcome
    target: str = ""
    tags: tuple[str, ...] = ()
    format: str = ""
    received: int = 0
    sent: int = 0
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str = ""
    hint: str = ""
    exit: int = 0


@dataclass(frozen=True, slots=True)
class Options:
    """How to import.

    Args:
        to: `NAMESPACE` or `NAMESPACE/NAME`; None: the client's namespace and the source's names.
        bases: registered bases; empty: by the names that the adapters give.
        accept_base: accept a given base even if the adapter names another.
        tags: to set on each version, besides those of the source.
        meta: metadata of each version, besides those of the source.
        dry_run: list what would come, and fetch nothing but configs.
    """

    to: str | None = None
    bases: Sequence[str] = ()
    accept_base: bool = False
    tags: Sequence[str] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = False


def run(client: Client, source: Source, options: Options, *, progress: Progress = SILENT) -> Iterator[Row]:
    """Import what a source lists; yields a row as soon as it is decided.

    Ends after an error that the next adapter would meet too (a server or a quota). Raises RegistryError if the source
    cannot be listed or a given base does not exist.
    """
    names = Names(client, options.to)
    bases = Bases(client, options.bases, names.namespace)
    bases.given()
    work = client.settings.cache / "imports"
    listed = source.items()
    begun = False
    while True:
        try:
            item = next(listed, None)
        except RegistryError as error:
            if not begun:
                raise
            yield _failed("the rest of the list", "", error)
            return
        if item is None:
            return
        begun = True
        if isinstance(item, Unreadable):
            yield _failed(item.source, "", item.error)
            continue
        one = _One(client, source, item, options, bases, names, work, progress)
        try:
            yield from one.run()
        except RegistryError as error:
            yield _failed(item.source, item.revision, error)
            if error.code in _ENDS:
                return


@dataclass(slots=True)
class _One:
    client: Client
    source: Source
    item: Item
    options: Options
    bases: Bases
    names: Names
    work: Path
    progress: Progress
    received: int = 0

    def run(self) -> Iterator[Row]:
        target = self.names.target(self.item)
        earlier = self._earlier(target)
        if earlier is not None:
            yield self._here(target, earlier)
            return
        identity = f"{self.item.source}\n{self.item.revision}"
        staged = self.work / hashlib.sha256(identity.encode()).hexdigest()[:32]
        with locked(self.work / f"{staged.name[:2]}.lock"):  # a file for each would stay for ever
            try:
                yield from self._import(target, staged)
            except RegistryError as error:
                if error.code not in _ENDS:  # what was fetched is of use to a later run only then
                    shutil.rmtree(staged, ignore_errors=True)
                raise
            shutil.rmtree(staged, ignore_errors=True)

    def _import(self, target: str, staged: Path) -> Iterator[Row]:
        config = self._config(staged)
        found = recognise([file.path for file in self.item.files], config)
        taken = {found.weights, *found.beside, *({CONFIG} if config is not None else ())}
        left_out = tuple(sorted(file.path for file in self.item.files if file.path not in taken))
        if self.options.dry_run:
            named = _named(config, self.item)
            if config is not None:
                self.bases.find(named)
            yield Row(
                self.item.source, self.item.revision, "would come", target, format=_label(found), left_out=left_out
            )
            return
        files = {path: self._fetched(path, staged) for path in sorted(taken)}
        digest = str(
            canonical.digest([[path, place.stat().st_size, sha256_of(place)] for path, place in files.items()])
        )
        work = staged / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        parts = prepare(found, config, files, work, self.bases, _named(config, self.item))
        # The first part last: its version says that all have come.
        for ready in reversed(parts):
            pushed = self._push(ready, target + ready.suffix, digest, found)
            yield self._row(pushed, ready, found, left_out)
            self.received = 0

    def _config(self, staged: Path) -> dict[str, Any] | None:
        file = self.item.file(CONFIG)
        if file is None:
            return None
        if file.size is not None and file.size > MAX_CONFIG_BYTES:
            raise RegistryError("rejected", f"{CONFIG} has {file.size} bytes, expected at most {MAX_CONFIG_BYTES}.")
        data = self._fetched(CONFIG, staged).read_bytes()
        document = canonical.loads_strict(data, what=CONFIG, max_bytes=MAX_CONFIG_BYTES)
        if not isinstance(document, dict):
            raise RegistryError("rejected", f"{CONFIG} is not an object.")
        return document

    def _fetched(self, path: str, staged: Path) -> Path:
        file = self.item.file(path)
        assert file is not None
        if self.item.folder is not None:
            return Path(file.location)
        place = staged / "files" / hashlib.sha256(path.encode()).hexdigest()[:16]
        if not place.exists():
            self.progress.begin(f"Fetching {self.item.name}/{path}", file.size)
            try:
                fetch(lambda start: self.source.open(self.item, file, start), file, place, self.progress)
            finally:
                self.progress.end()
            self.received += place.stat().st_size
        return place

    def _push(self, ready: Ready, target: str, digest: str, found: Recognised) -> Pushed:
        meta = {
            SOURCE: self.item.source,
            REVISION: self.item.revision,
            DIGEST: digest,
            FORMAT: _label(found),
            **self.options.meta,
        }
        meta |= dict(list(self.item.meta.items())[: _MAX_PAIRS - len(meta)])
        return push_adapter(
            self.client,
            ready.folder,
            base=ready.base.reference,
            to=target,
            tags=[*self.options.tags, *self.item.tags],
            message=f"Imported from {self.item.source}@{self.item.revision[:19]}",
            meta=meta,
            accept_base=self.options.accept_base,
            progress=self.progress,
        )

    def _row(self, pushed: Pushed, ready: Ready, found: Recognised, left_out: tuple[str, ...]) -> Row:
        assert pushed.result is not None
        version = pushed.result.version
        return Row(
            self.item.source,
            self.item.revision,
            "created" if pushed.result.created else "exists",
            f"{version.namespace}/{version.name}:v{version.number}",
            tags=tuple(version.tags),
            format=_label(found),
            received=self.received,
            sent=pushed.sent,
            left_out=left_out,
            notes=(*ready.notes, *(finding.message for finding in pushed.findings if finding.severity == "warning")),
        )

    def _earlier(self, target: str) -> VersionView | None:
        """The version that an earlier run made of this; None if there is none, or for another base than given now."""
        given = {base.view.digest for base in self.bases.given()}
        for version in self.names.versions(target):
            same = (version.meta.get(SOURCE), version.meta.get(REVISION)) == (self.item.source, self.item.revision)
            if same and (not given or (version.base is not None and version.base.digest in given)):
                return version
        return None

    def _here(self, target: str, version: VersionView) -> Row:
        """Tags may have moved at the source since."""
        wanted = [tag for tag in (*self.options.tags, *self.item.tags) if tag not in version.tags]
        if not self.options.dry_run:
            for tag in wanted:
                self.client.set_tag(target, tag, f"v{version.number}", reason=f"import of {self.item.source}")
        return Row(
            self.item.source,
            self.item.revision,
            "already imported",
            f"{version.namespace}/{version.name}:v{version.number}",
            tags=tuple(dict.fromkeys([*version.tags, *wanted])),
            format=version.meta.get(FORMAT, ""),
        )


def _named(config: Mapping[str, Any] | None, item: Item) -> str | None:
    """What the adapter calls its base, or else what its source does."""
    if config is None:
        return item.base
    found = config.get("base_model_name_or_path") or mlx.base_of(config) or adapterhub.base_of(config)
    return found if isinstance(found, str) and found else item.base


def _label(found: Recognised) -> str:
    return f"{found.format} ({found.weights})" if found.pickled or found.format == "diffusion" else found.format


def _failed(source: str, revision: str, error: RegistryError) -> Row:
    outcome: Outcome = "not an adapter" if isinstance(error, NotAnAdapter) else "failed"
    return Row(source, revision, outcome, reason=error.detail, hint=error.hint, exit=error.kind.exit)
