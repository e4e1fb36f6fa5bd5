"""Check uploaded files in the blob store, with the same code as the client."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import msgspec
from sqlmodel import Session

from lora_contract import dataset
from lora_contract.adapter.check import AdapterFile, check_adapter
from lora_contract.base import BaseFingerprint, BaseTensor, parse_fingerprint
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding
from lora_contract.fingerprint import build_fingerprint, check_base_files, check_side_files, read_base_config
from lora_contract.manifest import FileEntry
from lora_contract.wire.repositories import CommitRequest
from lora_registry.bases import store as base_store
from lora_registry.blobs.protocols import BlobStore
from lora_registry.blobs.window import Window
from lora_registry.context import Context
from lora_registry.db.tables import Version
from lora_registry.keeping.reading import Content, contents
from lora_registry.repositories import store


@dataclass(frozen=True, slots=True)
class PinnedBase:
    """The base against which an adapter is checked. names: its own name and its aliases. files: those stored."""

    version: Version
    fingerprint: bytes
    names: Collection[str]
    files: Mapping[str, Content]
    used: set[str] = field(default_factory=set)
    """Paths of the files that a check has read."""

    def contents_read(self) -> list[Content]:
        return [self.files[path] for path in sorted(self.used)]


@dataclass(frozen=True, slots=True)
class ContentCheck:
    """config: ModelPack's technical metadata, computed only from the content."""

    findings: list[Finding]
    facts: dict[str, object] | None = None
    fingerprint: BaseFingerprint | None = None
    config: dict[str, str] = field(default_factory=dict)


Reader = Callable[[str, int, int], bytes]


def by_kind(ctx: Context, request: CommitRequest, files: tuple[FileEntry, ...], pin: PinnedBase | None) -> ContentCheck:
    """Check uploaded files by the kind that the request names. Raises RegistryError for an inconsistent request."""
    match request.kind:
        case "adapter":
            assert pin is not None
            return adapter(ctx, files, pin, accept_base=request.accept_base)
        case "base":
            return _base(request, files, reader(ctx.blobs, files))
        case "dataset":
            return _dataset(ctx.blobs, files)
        case _:
            raise RegistryError(
                "unsupported",
                f"Versions of kind {request.kind} cannot be pushed yet.",
                hint="Create models with `lora-reg merge`.",
            )


def reader(blobs: BlobStore, files: tuple[FileEntry, ...]) -> Reader:
    """Return `read(path, offset, length)` over stored blobs."""
    windows = {entry.path: Window(blobs, entry.digest, entry.size) for entry in files}

    def read(path: str, offset: int, length: int) -> bytes:
        return windows[path].read(offset, length)

    return read


def base_reader(blobs: BlobStore, pin: PinnedBase) -> Callable[[BaseTensor, int, int], bytes] | None:
    """Return `read(tensor, offset, length)`, offset within the tensor; None if the base's weights are not stored."""
    if pin.version.weights_absent:
        return None

    windows = {path: Window(blobs, file.where, file.size) for path, file in pin.files.items()}

    def read(tensor: BaseTensor, offset: int, length: int) -> bytes:
        pin.used.add(tensor.file)
        return windows[tensor.file].read(tensor.start + offset, length)

    return read


def adapter(ctx: Context, files: tuple[FileEntry, ...], pin: PinnedBase, *, accept_base: bool) -> ContentCheck:
    """Check an adapter whose files are stored. accept_base: accept a config that names another base."""
    result = check_adapter(
        [AdapterFile(entry.path, entry.size) for entry in files],
        reader(ctx.blobs, files),
        parse_fingerprint(pin.fingerprint),
        base_aliases=pin.names,
        accept_base=accept_base,
        read_base=base_reader(ctx.blobs, pin),
    )
    facts = None if result.facts is None else msgspec.to_builtins(result.facts)
    return ContentCheck(result.findings, facts=facts, config={"format": "safetensors"})


def load_base(session: Session, version: Version) -> PinnedBase:
    """Load the base version against which adapters are checked. Raises `conflict`, `corrupt`."""
    repo = store.repositories_by_id(session, [version.repository_id])[version.repository_id]
    if repo.kind != "base":
        raise RegistryError("conflict", f"{repo.namespace}/{repo.name} is of kind {repo.kind}, not base.")
    row = base_store.fingerprint(session, version.id)
    if row is None:
        raise RegistryError("corrupt", f"The fingerprint of {repo.namespace}/{repo.name}:v{version.number} is missing.")
    names = {*base_store.aliases(session, repo.id), repo.name, f"{repo.namespace}/{repo.name}"}
    return PinnedBase(version, row.body, frozenset(names), contents(session, [version.id])[version.id])


def _dataset(blobs: BlobStore, files: tuple[FileEntry, ...]) -> ContentCheck:
    """Check a dataset, with one line in memory at a time. Raises `rejected`."""
    if [entry.path for entry in files] != [dataset.FILE]:
        named = ", ".join(entry.path for entry in files)[:200]
        raise RegistryError("rejected", f"A dataset is a single file {dataset.FILE}; found {named}.")
    if files[0].size > dataset.MAX_BYTES:
        raise RegistryError("rejected", f"{dataset.FILE} has {files[0].size} bytes; the limit is {dataset.MAX_BYTES}.")
    facts = dataset.check_dataset(blobs.stream(files[0].digest))
    return ContentCheck([], facts=msgspec.to_builtins(facts), config={"format": "jsonl"})


def _base(request: CommitRequest, files: tuple[FileEntry, ...], read: Reader) -> ContentCheck:
    table = {entry.path: (entry.size, str(entry.digest)) for entry in files}
    if not request.weights_absent:
        findings = list(check_base_files([AdapterFile(entry.path, entry.size) for entry in files], read))
        if any(finding.severity == "error" for finding in findings):
            return ContentCheck(findings)
        fingerprint = build_fingerprint(table, read)
    else:
        if request.fingerprint is None:
            raise RegistryError(
                "invalid-request", "A base without its weights requires the fingerprint computed by the client."
            )
        stored = [entry for entry in files if not entry.path.endswith(".safetensors")]
        findings = list(check_side_files([AdapterFile(entry.path, entry.size) for entry in stored], read))
        if any(finding.severity == "error" for finding in findings):
            return ContentCheck(findings)
        fingerprint = parse_fingerprint(msgspec.json.encode(request.fingerprint))
        if fingerprint.files != {path: digest for path, (_, digest) in table.items()}:
            raise RegistryError("rejected", "The fingerprint and the commit name different files.")
        if fingerprint.config != read_base_config(table, read):
            raise RegistryError("rejected", "The fingerprint and config.json differ.", hint="Run the command again.")
    facts: dict[str, object] = {
        "architecture": fingerprint.architecture,
        "model_type": fingerprint.model_type,
        "tensors": len(fingerprint.tensors),
        "embedding_rows": fingerprint.embedding_rows,
        "tied": fingerprint.tied,
        "tokenizer": fingerprint.tokenizer,
        "chat_template": fingerprint.chat_template,
        "fingerprint": str(fingerprint.digest),
        "dtypes": sorted({tensor.dtype for tensor in fingerprint.tensors}),
    }
    return ContentCheck(
        findings,
        facts=facts,
        fingerprint=fingerprint,
        config={"architecture": fingerprint.architecture, "format": "safetensors"},
    )
