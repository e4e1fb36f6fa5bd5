"""Push: check locally, upload missing blobs, commit. The server repeats the checks on what it stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from lora_contract import dataset, reference
from lora_contract.adapter.check import AdapterFile, check_adapter
from lora_contract.base_weights import unusable_weights
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding, refuse
from lora_contract.fingerprint import SINGLE, build_fingerprint, check_base_files, weights_in_use
from lora_contract.manifest import Kind
from lora_contract.pipelines import INDEX_SUFFIX, SUFFIX
from lora_contract.reference import Reference
from lora_contract.wire.repositories import CommitRequest, CommitResult
from lora_contract.wire.uploads import FileSpec, UploadRequest
from lora_reg.client import Client
from lora_reg.progress import SILENT, Progress
from lora_reg.transfer.choosing import require_itself
from lora_reg.transfer.moving import with_prefix
from lora_reg.transfer.pinning import ResolvedBase, base_reader, named_base, pin_base
from lora_reg.transfer.scan import LocalFile, Reader, Scan, scan_file, scan_folder
from lora_reg.transfer.selection import Selection
from lora_reg.transfer.upload import send_blobs


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of a push.

    Args:
        result: None after a dry run.
        left_out: names in the folder that were neither opened nor sent; those of folders end in '/'.
        size: bytes of all files. sent: bytes uploaded.
        base_named: what adapter_config.json calls the base; None if the caller named it.
    """

    target: str
    result: CommitResult | None
    findings: tuple[Finding, ...]
    facts: dict[str, Any] | None
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    size: int
    sent: int = 0
    base: str | None = None
    base_named: str | None = None


def push_adapter(
    client: Client,
    folder: str | Path,
    *,
    base: str | None = None,
    to: str | None = None,
    tags: Sequence[str] = (),
    message: str = "",
    meta: Mapping[str, str] | None = None,
    parents: Sequence[str] = (),
    accept_base: bool = False,
    prefix: str | None = None,
    exclude: Sequence[str] = (),
    strict: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Pushed:
    """Push the folder of an adapter as a version. What trainers are known to leave in it is not part of the version.

    Args:
        client: of the registry.
        folder: with adapter_config.json and adapter_model.safetensors.
        base: reference of the base that the adapter was trained on; None: the registered base that the adapter's
            config names, by its name or an alias.
        to: repository, optionally with a tag to set; None: the name of the folder.
        tags: to set on the version.
        message: of the version.
        meta: metadata of the version.
        parents: versions that training continued from.
        accept_base: accept `base` even if the adapter's config names a different one.
        prefix: of the part of the base that the adapter was trained on alone, such as `model.language_model`: the
            version has the base's names for its modules, and `prefix` in its metadata.
        exclude: patterns of files to leave out, as in a .gitignore; the folder may have them in .loraregignore.
        strict: refuse every file that is not part of an adapter, also by-products of trainers.
        dry_run: check only.
        progress: receives the progress.

    Raises RegistryError `rejected` or `base-mismatch` with all findings before a byte is uploaded, and `usage` if not
    the folder but folders in it hold adapters.
    """
    require_itself(Path(folder), "adapter")
    target, tags = target_of(client, folder, to, tags)
    scan = scan_folder(Path(folder), select=Selection(Path(folder), "adapter", exclude=exclude, strict=strict))
    if base is None:
        refuse(scan.findings)
        pinned = named_base(client, scan, target.namespace)
    else:
        pinned = pin_base(client, base)
    with ExitStack() as stack:
        if prefix is not None:
            refuse(scan.findings)
            work = Path(stack.enter_context(TemporaryDirectory(prefix="lora-reg-")))
            scan = with_prefix(scan, pinned.fingerprint, prefix, work)
            meta = {**(meta or {}), "prefix": prefix}
            accept_base = True
        return _push(client, target, scan, pinned, tags, message, meta or {}, parents, accept_base, dry_run, progress)


def _push(
    client: Client,
    target: Reference,
    scan: Scan,
    pinned: ResolvedBase,
    tags: Sequence[str],
    message: str,
    meta: Mapping[str, str],
    parents: Sequence[str],
    accept_base: bool,
    dry_run: bool,
    progress: Progress,
) -> Pushed:
    result = check_adapter(
        [AdapterFile(file.path, file.size) for file in scan.files],
        scan.reader(),
        pinned.fingerprint,
        base_aliases=pinned.names,
        base_name=f"{pinned.view.namespace}/{pinned.view.name}",
        accept_base=accept_base,
        read_base=base_reader(client, pinned),
    )
    findings = (*scan.findings, *result.findings)
    refuse(findings)
    facts = None if result.facts is None else msgspec.to_builtins(result.facts)
    about = pushed_of(target, scan, findings, facts)
    about = replace(about, base=f"{pinned.view.namespace}/{pinned.view.name}", base_named=pinned.named)
    if dry_run:
        return about
    digests = scan.hash(progress)
    specs = _specs(scan, digests)
    request = CommitRequest(
        session="",
        kind="adapter",
        files=specs,
        base=pinned.reference,
        tags=list(tags),
        message=message,
        meta=dict(meta),
        parents=[str(client.parse(parent)) for parent in parents],
        accept_base=accept_base,
    )
    committed, sent = send_and_commit(client, target, scan, specs, request, progress)
    return replace(about, result=committed, sent=sent)


def add_base(
    client: Client,
    name: str,
    folder: str | Path,
    *,
    manifest_only: bool = False,
    aliases: Sequence[str] = (),
    tags: Sequence[str] = (),
    message: str = "",
    exclude: Sequence[str] = (),
    strict: bool = False,
    progress: Progress = SILENT,
) -> Pushed:
    """Register a base model from its folder: config, weights that transformers loads, tokenizer and documentation.

    Raises RegistryError `rejected` with all findings.

    Args:
        client: of the registry.
        name: of the base.
        folder: in the layout of transformers; whatever else lies there is left out.
        manifest_only: upload its structure and small files, not its weights.
        aliases: what trainers write for this base.
        tags: to set on the version.
        message: of the version.
        exclude: patterns of files to leave out, as in a .gitignore.
        strict: refuse every file that is not part of a base.
        progress: receives the progress.
    """
    require_itself(Path(folder), "base")
    target, tags = target_of(client, folder, name, tags)
    scan = _scan_base(Path(folder), exclude, strict=strict)
    files = [AdapterFile(file.path, file.size) for file in scan.files]
    findings = (*scan.findings, *base_findings(files, scan.reader(), scan.left_out))
    refuse(findings)
    digests = scan.hash(progress)
    table = {file.path: (file.size, str(digests[file.path])) for file in scan.files}
    fingerprint = build_fingerprint(table, scan.reader())
    specs = _specs(scan, digests)
    request = CommitRequest(
        session="",
        kind="base",
        files=specs,
        tags=list(tags),
        message=message,
        weights_absent=manifest_only,
        fingerprint=msgspec.to_builtins(fingerprint) if manifest_only else None,
        aliases=list(aliases),
    )
    sent_specs = [spec for spec in specs if not (manifest_only and spec.path.endswith(".safetensors"))]
    committed, sent = send_and_commit(client, target, scan, sent_specs, request, progress)
    return pushed_of(target, scan, findings, None, committed, sent)


def add_dataset(
    client: Client,
    name: str,
    file: str | Path,
    *,
    tags: Sequence[str] = (),
    message: str = "",
    progress: Progress = SILENT,
) -> Pushed:
    """Push a dataset, a file of JSON lines, as a version. Raises RegistryError `rejected`, which names the line."""
    target, tags = target_of(client, file, name, tags)
    scan = scan_file(Path(file), dataset.FILE)
    facts = dataset.check_dataset(scan.files[0].chunks())
    specs = _specs(scan, scan.hash(progress))
    request = CommitRequest(session="", kind="dataset", files=specs, tags=list(tags), message=message)
    committed, sent = send_and_commit(client, target, scan, specs, request, progress)
    return pushed_of(target, scan, (), msgspec.to_builtins(facts), committed, sent)


def _scan_base(folder: Path, exclude: Sequence[str], *, strict: bool) -> Scan:
    """Scan the folder of a base without the weights that transformers would not load."""
    scan = scan_folder(folder, select=Selection(folder, "base", exclude=exclude, strict=strict), follow_links=True)
    if strict:
        return scan
    return scan.without(unused_weights({file.path: file.size for file in scan.files}, scan.reader()))


def unused_weights(sizes: Mapping[str, int], read: Reader) -> frozenset[str]:
    """The weight files of a base that transformers would not load. Raises `rejected` for an unreadable index."""
    used = weights_in_use(sizes, read)
    return frozenset(path for path in sizes if path.endswith((SUFFIX, INDEX_SUFFIX)) and path not in used)


def base_findings(files: Sequence[AdapterFile], read: Reader, left_out: Sequence[str]) -> list[Finding]:
    """Problems of these files as a base; if it has no weights, what was left out says what stands in their place."""
    weights = any(file.path.endswith(".safetensors") for file in files)
    unusable = None if weights else unusable_weights(left_out)
    checked = check_base_files(files, read)
    return checked if unusable is None else [unusable, *(finding for finding in checked if finding.file != SINGLE)]


def target_of(client: Client, folder: str | Path, to: str | None, tags: Sequence[str]) -> tuple[Reference, list[str]]:
    """The repository to push to, and the tags: those given and that of the reference."""
    if to is None:
        name = Path(folder).resolve().name
        try:
            to = reference.check_name(name)
        except RegistryError as error:
            raise RegistryError(
                "usage",
                f"The name of the folder, {name!r}, is not a valid repository name.",
                hint="Name the repository: push DIR --base BASE NAMESPACE/NAME.",
            ) from error
    parsed = client.parse(to)
    if parsed.is_pinned:
        raise RegistryError(
            "usage", f"{to!r} names a version; the server assigns version numbers.", hint="Name only the repository."
        )
    wanted = [reference.check_tag(tag) for tag in (*tags, *((parsed.tag,) if parsed.tag else ()))]
    return Reference(parsed.name, parsed.namespace), list(dict.fromkeys(wanted))


def _specs(scan: Scan, digests: Mapping[str, Digest]) -> list[FileSpec]:
    return [FileSpec(path=file.path, size=file.size, digest=str(digests[file.path])) for file in scan.files]


def send_and_commit(
    client: Client, target: Reference, scan: Scan, specs: Sequence[FileSpec], request: CommitRequest, progress: Progress
) -> tuple[CommitResult, int]:
    """Upload the files of `specs` from a scan and commit the request. Returns the result and the bytes uploaded."""
    by_path: dict[str, LocalFile] = {file.path: file for file in scan.files}
    kind: Kind = request.kind
    files = {spec.digest: by_path[spec.path] for spec in specs}
    sent = 0
    for repeated in (False, True):
        session = client.open_upload(
            UploadRequest(namespace=target.namespace or "", name=target.name, kind=kind, files=list(specs))
        )
        sent += send_blobs(client, session, files, progress)
        progress.begin("Checking on the server", None)
        try:
            return client.commit(target, msgspec.structs.replace(request, session=session.id)), sent
        except RegistryError as error:
            # The store has damaged a file that need not be sent: a new session asks for it, which repairs it.
            if error.code != "corrupt" or repeated:
                raise
        finally:
            progress.end()
    raise AssertionError("the second attempt returns or raises")


def pushed_of(
    target: Reference,
    scan: Scan,
    findings: Sequence[Finding],
    facts: dict[str, Any] | None,
    result: CommitResult | None = None,
    sent: int = 0,
) -> Pushed:
    return Pushed(
        target=str(target),
        result=result,
        findings=tuple(findings),
        facts=facts,
        files=tuple(file.path for file in scan.files),
        left_out=scan.left_out,
        size=sum(file.size for file in scan.files),
        sent=sent,
    )
