"""The check of uploaded content, by the client's code. It needs no database, so a child process can run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from lora_contract import dataset, pipelines
from lora_contract.adapter.check import AdapterFile, check_adapter
from lora_contract.base import BaseFingerprint, BaseTensor, parse_fingerprint
from lora_contract.components import component, component_names
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding
from lora_contract.fingerprint import build_fingerprint, check_base_files, check_side_files, read_base_config
from lora_registry.blobs.keys import address, life_of
from lora_registry.blobs.protocols import BlobReader
from lora_registry.blobs.remote import RemoteStore
from lora_registry.blobs.window import Window
from lora_registry.processes.child import ChildReporter, blob_socket

Reader = Callable[[str, int, int], bytes]


class PlacedFile(msgspec.Struct, frozen=True):
    """A file and where its bytes are."""

    path: str
    size: int
    digest: str
    life: str

    @classmethod
    def of(cls, path: str, size: int, where: Digest) -> PlacedFile:
        return cls(path, size, str(Digest(where.hex)), life_of(where))

    @property
    def where(self) -> Digest:
        return address(Digest.parse(self.digest), self.life)


class CheckInput(msgspec.Struct, frozen=True):
    """What is checked.

    Args:
        kind: adapter, base, model or dataset.
        accept_base: accept a config that names another base.
        base_names: all names of the pinned base. base_name: that of its repository.
        base_fingerprint: its canonical JSON.
        base_files: those whose bytes are stored; None: its weights are not.
        weights_absent, fingerprint: of a base whose weights stay elsewhere; the client computed the fingerprint.
    """

    kind: str
    files: tuple[PlacedFile, ...]
    accept_base: bool = False
    base_names: tuple[str, ...] = ()
    base_name: str = ""
    base_fingerprint: str = ""
    base_files: tuple[PlacedFile, ...] | None = None
    weights_absent: bool = False
    fingerprint: dict[str, Any] | None = None


class ContentCheck(msgspec.Struct, frozen=True):
    """What a check found.

    Args:
        fingerprint: of a base, as canonical JSON.
        config: ModelPack's technical metadata, computed only from the content.
        base_read: paths of the base's files that were read.
    """

    findings: list[Finding]
    facts: dict[str, Any] | None = None
    fingerprint: str | None = None
    config: dict[str, str] = {}
    base_read: list[str] = []


def check(data: CheckInput, _reporter: ChildReporter) -> ContentCheck:
    """Check in a child process, which reads the blobs through its parent."""
    control = blob_socket()
    assert control is not None, "checks of the API are served blobs"
    return check_content(data, RemoteStore(control))


def check_content(data: CheckInput, blobs: BlobReader) -> ContentCheck:
    """Check stored files by their kind. Raises RegistryError for an inconsistent request."""
    match data.kind:
        case "adapter":
            return _adapter(data, blobs)
        case "base":
            return _base(data, _reader(blobs, data.files))
        case "model":
            return _model(data, _reader(blobs, data.files))
        case "dataset":
            return _dataset(data, blobs)
        case _:
            raise RegistryError("invalid-request", f"There are no versions of kind {data.kind[:40]!r}.")


def _reader(blobs: BlobReader, files: Iterable[PlacedFile]) -> Reader:
    """Return `read(path, offset, length)` over stored blobs."""
    windows = {file.path: Window(blobs, file.where, file.size) for file in files}

    def read(path: str, offset: int, length: int) -> bytes:
        return windows[path].read(offset, length)

    return read


def _adapter(data: CheckInput, blobs: BlobReader) -> ContentCheck:
    used: set[str] = set()
    read_file = _reader(blobs, data.base_files or ())

    def read_base(tensor: BaseTensor, offset: int, length: int) -> bytes:
        used.add(tensor.file)
        return read_file(tensor.file, tensor.start + offset, length)

    result = check_adapter(
        [AdapterFile(file.path, file.size) for file in data.files],
        _reader(blobs, data.files),
        parse_fingerprint(data.base_fingerprint.encode()),
        base_aliases=data.base_names,
        base_name=data.base_name,
        accept_base=data.accept_base,
        read_base=None if data.base_files is None else read_base,
    )
    facts = None if result.facts is None else msgspec.to_builtins(result.facts)
    return ContentCheck(result.findings, facts, config={"format": "safetensors"}, base_read=sorted(used))


def _dataset(data: CheckInput, blobs: BlobReader) -> ContentCheck:
    """Check a dataset, with one line in memory at a time. Raises `rejected`."""
    if [file.path for file in data.files] != [dataset.FILE]:
        named = ", ".join(file.path for file in data.files)[:200]
        raise RegistryError("rejected", f"A dataset is a single file {dataset.FILE}; found {named}.")
    (file,) = data.files
    if file.size > dataset.MAX_BYTES:
        raise RegistryError("rejected", f"{dataset.FILE} has {file.size} bytes; the limit is {dataset.MAX_BYTES}.")
    facts = dataset.check_dataset(blobs.stream(file.where))
    return ContentCheck([], facts=msgspec.to_builtins(facts), config={"format": "jsonl"})


def _base(data: CheckInput, read: Reader) -> ContentCheck:
    table = {file.path: (file.size, file.digest) for file in data.files}
    if not data.weights_absent:
        findings = list(check_base_files([AdapterFile(file.path, file.size) for file in data.files], read))
        if any(finding.severity == "error" for finding in findings):
            return ContentCheck(findings)
        fingerprint = build_fingerprint(table, read)
    else:
        if data.fingerprint is None:
            raise RegistryError(
                "invalid-request", "A base without its weights requires the fingerprint computed by the client."
            )
        stored = [file for file in data.files if not file.path.endswith(".safetensors")]
        findings = list(check_side_files([AdapterFile(file.path, file.size) for file in stored], read))
        if any(finding.severity == "error" for finding in findings):
            return ContentCheck(findings)
        fingerprint = parse_fingerprint(msgspec.json.encode(data.fingerprint))
        if fingerprint.files != {path: digest for path, (_, digest) in table.items()}:
            raise RegistryError("rejected", "The fingerprint and the commit name different files.")
        if fingerprint.config != read_base_config(table, read):
            raise RegistryError("rejected", "The fingerprint and config.json differ.", hint="Run the command again.")
    return _found(findings, fingerprint)


def _model(data: CheckInput, read: Reader) -> ContentCheck:
    """Check a whole model as a base is checked: it is loaded in the same way. It has no fingerprint of its own."""
    found = _base(data, read)
    return ContentCheck(found.findings, facts=found.facts, config=found.config)


def _found(findings: list[Finding], fingerprint: BaseFingerprint) -> ContentCheck:
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
        **_of_diffusers(fingerprint),
    }
    return ContentCheck(
        findings,
        facts=facts,
        fingerprint=fingerprint.to_bytes().decode(),
        config={"architecture": fingerprint.architecture, "format": "safetensors"},
    )


def _of_diffusers(fingerprint: BaseFingerprint) -> dict[str, object]:
    """Facts of a diffusion model; components: the class of each model of a pipeline."""
    if not pipelines.is_of_diffusers(fingerprint.config):
        return {}
    classes = {name: component(fingerprint, name).architecture for name in component_names(fingerprint)}
    return {"library": pipelines.LIBRARY, **({"components": classes} if classes else {})}
